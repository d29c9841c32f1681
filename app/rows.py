"""A conversation as the rows of a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dg_mlx.conversation import Conversation, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One bubble. A message may be several."""

    message: str
    """The id of the message; empty: it is still being written."""
    value: dict[str, Any]
    """As Gradio's chatbot takes it."""


def rows(conversation: Conversation, line: Sequence[Message]) -> list[Row]:
    """Of messages that follow each other."""
    return [
        Row(message=message.id, value=value)
        for message in line
        for value in _values(conversation, message)
    ]


def sending(text: str, files: Sequence[str]) -> list[Row]:
    """Of a user's message that is on its way: files by their paths."""
    values = [_file(file) for file in files] + ([_bubble("user", text)] if text.strip() else [])
    return [Row(message="", value=value) for value in values]


def written(text: str, thought: str) -> list[Row]:
    """Of an answer that is being written, as far as its blocks are final."""
    values = [_thought(thought, done=bool(text))] if thought.strip() else []
    if text:
        values.append(_bubble("assistant", text))
    return [Row(message="", value=value) for value in values]


def _values(conversation: Conversation, message: Message) -> list[dict[str, Any]]:
    if message.role == "user":
        media = conversation.journal.media
        files = [_file(media.source(file.name)) for file in message.files]
        return [*files, *([_bubble("user", message.text)] if message.text else [])]
    if message.role == "tool":
        title = f"Result of {message.name or 'a tool'}"
        return [_bubble("assistant", _fenced(message.text), title=title)]
    values = [_thought(message.thought, done=True)] if message.thought.strip() else []
    if message.text.strip():
        values.append(_bubble("assistant", message.text))
    for call in message.tool_calls:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False, indent=1)
        title = f"Calls {function['name']}"
        values.append(_bubble("assistant", _fenced(arguments, "json"), title=title))
    if message.cut and values:
        values.append(_bubble("assistant", "", title="Stopped: the end of this answer is missing"))
    return values


def _bubble(role: str, text: str, *, title: str = "") -> dict[str, Any]:
    bubble: dict[str, Any] = {"role": role, "content": text}
    return bubble | {"metadata": {"title": title, "status": "done"}} if title else bubble


def _thought(text: str, *, done: bool) -> dict[str, Any]:
    words = len(text.split())
    return {
        "role": "assistant",
        "content": text.strip(),
        "metadata": {
            "title": f"Thought ({words} word{'' if words == 1 else 's'})",
            "status": "done" if done else "pending",
        },
    }


def _file(source: str | bytes) -> dict[str, Any]:
    """A picture or video; one that is in no folder is shown from its bytes."""
    if isinstance(source, str):
        return {"role": "user", "content": {"path": source}}
    import io

    import gradio
    from PIL import Image

    return {"role": "user", "content": gradio.Image(Image.open(io.BytesIO(source)))}


def _fenced(text: str, language: str = "") -> str:
    """As a code block, whatever is in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
