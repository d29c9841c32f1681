"""The page: chat, edits and comparisons beside a live canvas, in a browser."""
