"""Conversations as files: all lines of one as JSON, and back; messages as others write them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dg_mlx.disk import write_text
from dg_mlx.errors import ConversationError, StoreError

from .conversation import Conversation
from .journal import Journal
from .jsonl import dump, load
from .log import VERSION, header, is_ours, newer
from .media import MediaFiles
from .message import Message, now
from .readable import to_html, to_markdown
from .tree import Added, Moved, System, Title, Tree

_KEYS = {"title": str, "system": str, "messages": list, "media": dict}
_IGNORED = ("weight", "refusal", "annotations")
"""What others' messages say that is not about what was said."""


def to_json(conversation: Conversation, *, media: bool = True) -> str:
    """The whole conversation in the format of docs/conversations.md, pictures and videos included.

    `media`: False for their names only.
    """
    tree = conversation.tree
    messages = tree.messages.values()
    data = header() | {
        "title": tree.title,
        "system": tree.system,
        "head": tree.head,
        "messages": [message.to_json() for message in messages],
    }
    if media:
        names = dict.fromkeys(file.name for message in messages for file in message.files)
        read = conversation.journal.media.read
        found = {name: content for name in names if (content := read(name)) is not None}
        data["media"] = {n: base64.b64encode(content).decode() for n, content in found.items()}
    return dump(data).decode()


_WRITERS: dict[str, Callable[[Conversation], str]] = {
    ".json": to_json,
    ".md": to_markdown,
    ".html": to_html,
}


def export(conversation: Conversation, path: Path) -> None:
    """Write a conversation as the file's ending says: .json, .md or .html. Raises `StoreError`."""
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise StoreError(
            f"{path.name} ends with {path.suffix or 'nothing'!r}; choose {', '.join(_WRITERS)}."
        )
    text = write(conversation)
    try:
        write_text(path, text.encode("utf-8", "replace").decode())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); name another.") from error


def import_(text: str | bytes) -> list[Conversation]:
    """Conversations, in memory, from our JSON or from OpenAI's messages.

    Those are a list of messages, an object that has one as `messages`, or lines of such objects or
    of single messages. Nothing is read but the text itself, so pictures must be in it. Raises
    `ConversationError`, `PromptError` and `MediaError`.
    """
    if isinstance(text, bytes):
        text = _decoded(text)
    values = _values(text.removeprefix("\ufeff"))
    if values and all(isinstance(value, Mapping) and "role" in value for value in values):
        values = [values]
    return [_conversation(value) for value in values]


def _values(text: str) -> list[Any]:
    """One value, or one a line."""
    try:
        return [load(text)]
    except ValueError:
        pass
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            values += [load(line)] if line.strip() else []
        except ValueError as error:
            raise ConversationError(
                f"line {number} is not JSON ({error}); give a conversation that was exported as "
                "JSON, or messages in OpenAI's form."
            ) from None
    if not values:
        raise ConversationError("the text is empty; give an exported conversation.")
    return values


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConversationError("the file is not UTF-8 text; save it as UTF-8.") from None


def _conversation(value: Any) -> Conversation:
    if is_ours(value):
        return _ours(value)
    messages = value.get("messages") if isinstance(value, Mapping) else value
    if isinstance(messages, list) and messages:
        return _theirs(messages)
    raise ConversationError(
        f"{value!r:.40} is no conversation; give one that was exported as JSON, or messages in "
        "OpenAI's form."
    )


def _ours(data: Mapping[str, Any]) -> Conversation:
    if newer(data):
        raise ConversationError(
            f"the conversation is of version {data.get('version')!r:.20} and this dg-mlx reads "
            f"{VERSION}; update dg-mlx."
        )
    for key in data.keys() - {*header(), "head"}:
        if not isinstance(data[key], _KEYS.get(key, ())):
            raise _broken(f"{key!r:.40} is {data[key]!r:.40}")
    tree, media = Tree(), MediaFiles()
    for number, message in enumerate(data.get("messages", ()), start=1):
        try:
            tree.apply(Added(message=Message.from_json(message)))
        except ConversationError as error:
            raise _broken(f"message {number}: {error}") from None
    tree.apply(System(text=data.get("system", "")))
    tree.apply(Title(text=data.get("title", "")))
    head = data.get("head", tree.head)
    if head is not None and head not in [*tree.messages]:
        raise _broken(f"its head is {head!r:.40}")
    tree.apply(Moved(head=head, way="switch"))
    for name, content in data.get("media", {}).items():
        media.hold(name, _checked(name, content))
    return _made(tree, media)


def _checked(name: str, content: Any) -> bytes:
    """The bytes of a file, which are those that its name says."""
    try:
        data = base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error):
        data = None
    if data is None or hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
        raise _broken(f"the bytes of {name!r:.80} are not those of its name")
    return data


def _theirs(messages: Sequence[Any]) -> Conversation:
    from dg_mlx.processor.messages import normalise

    messages = [_without(message, _IGNORED) for message in messages]
    turns, found = normalise(messages)
    for part in found:
        if part.kind == "video" or not str(part.source).startswith("data:"):
            raise ConversationError(
                f"a message shows the {part.kind} {part.source!r:.60}; an import may only hold "
                "pictures as data: URIs."
            )
    tree, media, pictures = Tree(), MediaFiles(), iter(found)
    for number, turn in enumerate(turns):
        if turn["role"] in ("system", "developer"):
            if number:
                raise ConversationError(
                    f"message {number} is from the {turn['role']}; only the first can be."
                )
            tree.apply(System(text=_system(turn["content"])))
            continue
        if "tool_responses" in turn:
            raise ConversationError(
                f"message {number} has tool_responses; write a tool message for each."
            )
        message = Message(
            id=tree.next_id(),
            parent=tree.head,
            role=turn["role"],
            content=media.parts(turn["content"], pictures),
            time=now(),
            thought=turn.get("reasoning") or turn.get("reasoning_content") or "",
            tool_calls=tuple(turn.get("tool_calls", ())),
            tool_call_id=turn.get("tool_call_id", ""),
            name=turn.get("name", ""),
        )
        try:
            tree.apply(Added(message=message.checked()))
        except ConversationError as error:
            raise ConversationError(f"message {number} cannot be imported: {error}.") from None
    return _made(tree, media)


def _system(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _without(message: Any, keys: Sequence[str]) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if key not in keys}


def _made(tree: Tree, media: MediaFiles) -> Conversation:
    return Conversation(model=tree.model, journal=Journal(tree, media))


def _broken(why: str) -> ConversationError:
    return ConversationError(f"the conversation is damaged ({why}); export it again.")
