"""Conversations: trees of messages that ask an engine and are saved as they grow.

docs/conversations.md says what is stored.
"""

from .context import LeftOut, Notice, Unsaved
from .conversation import Conversation
from .exchange import export, import_, to_json
from .message import Content, File, Message, Role, Text
from .readable import to_html, to_markdown
from .store import Hit, Store, data_folder
from .summary import Summary

__all__ = [
    "Content",
    "Conversation",
    "File",
    "Hit",
    "LeftOut",
    "Message",
    "Notice",
    "Role",
    "Store",
    "Summary",
    "Text",
    "Unsaved",
    "data_folder",
    "export",
    "import_",
    "to_html",
    "to_json",
    "to_markdown",
]
