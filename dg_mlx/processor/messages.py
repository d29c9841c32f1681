"""Chat messages, checked and in the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dg_mlx.errors import PromptError

from .images import shorten

_ROLES = ("system", "developer", "user", "assistant", "tool")
_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning", "reasoning_content", "tool_responses")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MediaPart:
    """A picture or a video of a message, not read yet."""

    kind: Literal["image", "video"]
    source: Any


def normalise(
    messages: str | Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Messages for the template, and their pictures and videos in order of appearance.

    Every picture and video is left as `{"type": "image"}`. Raises `PromptError`.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages are a {type(messages).__name__}; give a string, a list of "
            '{"role": …, "content": …}, or a list of token ids.'
        )
    if not messages:
        raise PromptError("there are no messages; give at least one from the user.")
    media: list[MediaPart] = []
    turns = [_message(message, f"message {i}", media) for i, message in enumerate(messages)]
    _check_tool_order(turns)
    return turns, media


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of nested mappings and lists with every string changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(k, change): map_strings(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change) for item in value]
    return value


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tool declarations in OpenAI's form. Raises `PromptError`."""
    if not tools:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise PromptError(f"tools are a {type(tools).__name__}; give a list of declarations.")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise PromptError(
                f"tool {i} is {shorten(repr(tool))}; write "
                '{"type": "function", "function": {"name": …, "description": …, "parameters": …}}.'
            )
        if not isinstance(function.get("parameters", {}), Mapping | None):
            raise PromptError(
                f"tool {i} ({function['name']}): parameters must be a JSON schema object."
            )
    return [dict(tool) for tool in tools]


def _message(message: Any, where: str, media: list[MediaPart]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(
            f'{where} is {shorten(repr(message))}; write {{"role": …, "content": …}}.'
        )
    role = message.get("role")
    if role not in _ROLES:
        raise PromptError(f"{where} has role {role!r}; choose one of {', '.join(_ROLES)}.")
    for key, value in message.items():
        if key not in ("role", "content", *_FIELDS) and value not in (None, [], {}, ""):
            raise PromptError(f"{where} has {key!r}, which has no effect here; leave it out.")
    where = f"{where} ({role})"
    turn: dict[str, Any] = {"role": role, "content": _content(message, role, where, media)}
    for key in _FIELDS:
        if message.get(key):
            turn[key] = message[key]
    if "tool_calls" in turn:
        if role != "assistant":
            raise PromptError(f"{where} has tool_calls; only an assistant message can.")
        turn["tool_calls"] = _tool_calls(turn["tool_calls"], where)
    return turn


def _content(message: Mapping[str, Any], role: str, where: str, media: list[MediaPart]) -> Any:
    content = message.get("content")
    if content is None and role == "assistant":
        return ""
    if role == "user" and (content is None or content in ("", [])):
        raise PromptError(f"{where} is empty; write something or leave it out.")
    if isinstance(content, str) or (role == "tool" and isinstance(content, Mapping)):
        return content
    if not isinstance(content, (list, tuple)):
        raise PromptError(
            f"{where} has content {shorten(repr(content))}; give a string or a list of parts."
        )
    return [_part(part, role, f"{where}, part {i}", media) for i, part in enumerate(content)]


def _part(part: Any, role: str, where: str, media: list[MediaPart]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise PromptError(f'{where} has no text; write {{"type": "text", "text": "…"}}.')
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url", "video"):
        raise PromptError(
            f"{where} is {shorten(repr(part))}; its type must be text, image, image_url or video."
        )
    source = part.get(kind)
    if kind == "image_url" and isinstance(source, Mapping):
        source = source.get("url")  # its "detail" is left to image_tokens
    if source is None:
        raise PromptError(f'{where} has no {kind}; write {{"type": "{kind}", "{kind}": …}}.')
    if role not in ("user", "tool"):
        raise PromptError(f"{where} is a picture or video; put it into a user message.")
    media.append(MediaPart(kind="video" if kind == "video" else "image", source=source))
    return {"type": "image"}


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
        raise PromptError(f"{where}: tool_calls must be a list of calls.")
    return [_tool_call(call, f"{where}, tool call {i}") for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(
            f"{where} is {shorten(repr(call))}; write "
            '{"type": "function", "function": {"name": …, "arguments": {…}}}.'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI's form
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise PromptError(
                f"{where}: arguments are not JSON ({error}); give an object."
            ) from None
    if not isinstance(arguments, Mapping | None):
        raise PromptError(f"{where}: arguments are {shorten(repr(arguments))}; give a JSON object.")
    return {**call, "function": {**function, "arguments": dict(arguments or {})}}


def _check_tool_order(turns: list[dict[str, Any]]) -> None:
    """Templates drop a tool's answer that answers nothing, and stop short at an open call."""
    asked = False
    for i, turn in enumerate(turns):
        if turn["role"] == "tool":
            if not asked:
                raise PromptError(
                    f"message {i} (tool) answers no call; put it right after the assistant message "
                    "with the tool_calls."
                )
        else:
            asked = "tool_calls" in turn
    last = turns[-1]
    if last["role"] == "assistant" and "tool_calls" in last and "tool_responses" not in last:
        raise PromptError(
            f"message {len(turns) - 1} (assistant) calls tools that nothing answers; add a tool "
            "message for each call."
        )
