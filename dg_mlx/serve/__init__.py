"""What a page and a server share: the models in memory, and work that takes long."""
