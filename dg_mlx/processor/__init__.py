"""Messages to ids and pictures, and ids back to text, thought and tool calls."""

from .prompt import Messages, Processor, Prompt
from .reply import ReplyDelta, ReplyParser

__all__ = ["Messages", "Processor", "Prompt", "ReplyDelta", "ReplyParser"]
