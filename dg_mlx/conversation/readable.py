"""The present line of a conversation as a text that people read: Markdown, or a page of HTML."""

from __future__ import annotations

import base64
import html
import io
import re

from dg_mlx.errors import MediaError
from dg_mlx.signs import harmless

from .conversation import Conversation
from .jsonl import dump
from .media import MediaFiles
from .message import File, Message

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_SHOWN = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
}
"""Pictures that every browser shows."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }
article { margin: 1.5em 0; padding-inline-start: 1em; border-inline-start: 3px solid #8884; }
article.user { border-color: #0072b2; }
h1 { font-size: 1.4em; } h2 { font-size: 0.9em; margin: 0; }
time, .note { font-weight: normal; opacity: 0.7; } .note { font-style: italic; }
.text, pre { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; display: block; margin: 0.5em 0; }
"""

_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1 dir="auto">{title}</h1>
{body}
</body>
</html>
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_markdown(conversation: Conversation) -> str:
    """The present line as Markdown; pictures by their names in the folder `media`."""
    parts = [f"# {_name(conversation)}"]
    if conversation.system:
        parts += ["## System", _closed(conversation.system)]
    for message in conversation.line:
        parts.append(f"## {_speaker(message)}")
        if message.thought.strip():
            parts.append("\n".join(f"> {line}".rstrip() for line in message.thought.splitlines()))
        parts += [f"![{file.kind}](media/{file.name})" for file in message.files]
        if message.text.strip():
            parts.append(_closed(message.text))
        parts += [_fenced(text) for text in _calls(message)]
        if note := _note(message):
            parts.append(f"*{note}*")
    return "\n\n".join(parts) + "\n"


def to_html(conversation: Conversation) -> str:
    """The present line as one page that needs no other file, no script and no network."""
    body = []
    if conversation.system:
        body.append(_article("system", "<h2>System</h2>", [_text(conversation.system)]))
    media = conversation.journal.media
    for message in conversation.line:
        when = f"{message.time:%Y-%m-%d %H:%M} UTC"
        heading = f"<h2>{_escape(_speaker(message))} <time>{when}</time></h2>"
        parts = [_picture(file, media) for file in message.files]
        if message.thought.strip():
            parts.append(f"<details><summary>Thought</summary>{_text(message.thought)}</details>")
        if message.text.strip():
            parts.append(_text(message.text))
        parts += [f"<pre>{_escape(text)}</pre>" for text in _calls(message)]
        if note := _note(message):
            parts.append(f'<p class="note">{note}</p>')
        body.append(_article(message.role, heading, parts))
    return _PAGE.format(
        policy=_POLICY, title=_escape(_name(conversation)), style=_STYLE, body="\n".join(body)
    )


def _name(conversation: Conversation) -> str:
    return conversation.title or "Conversation"


def _speaker(message: Message) -> str:
    detail = message.name if message.role == "tool" else message.model
    return " ".join(f"{message.role.capitalize()} {detail}".split())


def _calls(message: Message) -> list[str]:
    return [
        f"{call['function']['name']} {dump(call['function']['arguments']).decode()}"
        for call in message.tool_calls
    ]


def _note(message: Message) -> str:
    if message.cut:
        return "The answer was stopped here."
    return "The answer reached its longest length here." if message.reason == "length" else ""


def _closed(text: str) -> str:
    """Markdown whose last code block ends, so that what follows is not part of it."""
    fence = ""
    for line in text.splitlines():
        if found := _FENCE.fullmatch(line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence) and not found[2].strip():
                fence = ""
    return f"{text}\n{fence}" if fence else text


def _fenced(text: str) -> str:
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{text}\n{fence}"


def _article(kind: str, heading: str, parts: list[str]) -> str:
    return "\n".join([f'<article class="{kind}">', heading, *parts, "</article>"])


def _escape(text: str) -> str:
    return html.escape(harmless(text))


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{_escape(text)}</div>'


def _picture(file: File, media: MediaFiles) -> str:
    """A picture in the page itself; for a video, that there was one."""
    data = media.read(file.name)
    if file.kind == "video" or data is None:
        missing = "" if data is not None else ", which is missing"
        return f'<p class="note">A {file.kind}{missing}: {file.name}</p>'
    kind = _SHOWN.get(file.name.rpartition(".")[2])
    if kind is None:
        try:
            kind, data = "image/png", _png(data)
        except MediaError:
            return f'<p class="note">A picture that cannot be read: {file.name}</p>'
    return f'<img alt="" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def _png(data: bytes) -> bytes:
    from dg_mlx.processor.images import open_image

    file = io.BytesIO()
    open_image(data).save(file, "PNG")
    return file.getvalue()
