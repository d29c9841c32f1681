"""What of a line goes into the prompt.

A line that does not fit the context is begun later: its oldest turns are left out, whole ones, and
never the last; the system text stays. They go a quarter of the room at a time, so that the turns
after that begin with the same tokens and find them in the cache. Which ones go depends on the line
alone: the same line is always the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from dg_mlx.errors import ConversationError, PromptError, StoreError
from dg_mlx.events import Event

from .media import MediaFiles
from .message import Content, Message, Text
from .tree import Tree

if TYPE_CHECKING:
    from dg_mlx.engine import Engine

Said = dict[str, Any]
"""A message as `Engine.stream` takes it."""

_SHARES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The line is longer than the context."""

    turns: int
    """The oldest ones, which the model does not see."""

    @property
    def line(self) -> str:
        """For people."""
        turns = "turn does" if self.turns == 1 else f"{self.turns} turns do"
        return f"the oldest {turns} not fit the context and are left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaved:
    """The conversation goes on in memory only."""

    error: StoreError

    @property
    def line(self) -> str:
        """For people."""
        return f"the conversation is not saved: {' '.join(str(self.error).split())}"


Notice = LeftOut | Unsaved
"""What a front end shows in one line, beside the engine's events."""


def system_of(tree: Tree) -> list[Said]:
    """The system text as a message, if there is one."""
    return [{"role": "system", "content": tree.system}] if tree.system else []


def said(line: Sequence[Message], media: MediaFiles) -> list[Said]:
    """A line as `Engine.stream` takes it. Calls that nothing answers are left out, and answers to
    no call: templates cannot write them."""
    told: list[Said] = []
    for i, message in enumerate(line):
        if message.role == "assistant":
            results = _results(line, i)
            calls = [call for call in message.tool_calls if _answered(call, results)]
            if message.text.strip() or calls:
                told.append(_answer(message, calls, media))
                told += [_result(result, media) for result in results if _asked(result, calls)]
        elif message.role == "user":
            told.append({"role": "user", "content": spoken(message.content, media)})
    return told


def spoken(content: Content, media: MediaFiles) -> Any:
    """Content as `Engine.stream` takes it."""
    if not isinstance(content, tuple):
        return content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": part.kind, part.kind: media.source(part.name)}
        for part in content
    ]


def _results(line: Sequence[Message], at: int) -> list[Message]:
    results: list[Message] = []
    for message in line[at + 1 :]:
        if message.role != "tool":
            break
        results.append(message)
    return results


def _answered(call: dict[str, Any], results: Sequence[Message]) -> bool:
    return any(result.tool_call_id in ("", call.get("id")) for result in results)


def _asked(result: Message, calls: Sequence[dict[str, Any]]) -> bool:
    return any(result.tool_call_id in ("", call.get("id")) for call in calls)


def _answer(message: Message, calls: list[dict[str, Any]], media: MediaFiles) -> Said:
    told: Said = {"role": "assistant", "content": spoken(message.content, media)}
    if calls:
        told["tool_calls"] = calls
    if message.thought:
        told["reasoning"] = message.thought  # the template drops those of earlier turns
    return told


def _result(message: Message, media: MediaFiles) -> Said:
    told: Said = {"role": "tool", "content": spoken(message.content, media)}
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    if message.name:
        told["name"] = message.name
    return told


def turns(told: Sequence[Said]) -> list[list[Said]]:
    """Each from what the user said up to what they said next."""
    found: list[list[Said]] = []
    for message in told:
        if message["role"] == "user" or not found:
            found.append([])
        found[-1].append(message)
    return found


class Context:
    """Fits lines into the context of an engine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._sizes: dict[bytes, int] = {}
        """Of turns that were counted for this engine."""

    def stream(
        self, engine: Engine, head: list[Said], told: Sequence[Said], options: dict[str, Any]
    ) -> tuple[Iterator[Event], int]:
        """The engine's answer, and how many turns are left out. Raises as `Engine.stream` does.

        `head` always stays.
        """
        every = turns(told)
        if not every:
            raise ConversationError("there is nothing to answer; say something.")
        left_out = 0
        while True:
            rest = [message for turn in every[left_out:] for message in turn]
            try:
                return engine.stream([*head, *rest], **options), left_out
            except PromptError:
                if left_out == len(every) - 1:
                    raise
            left_out = max(left_out + 1, self._left_out(engine, head, every, options))

    def _left_out(
        self, engine: Engine, head: list[Said], every: list[list[Said]], options: dict[str, Any]
    ) -> int:
        """How many turns to leave out of a line that is too long, but for rounding."""
        settings = options.get("settings") or engine.settings
        room = max(1, engine.config.text.max_position_embeddings - settings.max_new_tokens)
        share = max(1, room // _SHARES)
        given = {key: options[key] for key in ("tools", "thinking") if key in options}
        sizes = [self._size(engine, turn) for turn in every[:-1]]
        last = len(engine.prompt([*head, *every[-1]], **given).ids)
        excess = max(1, sum(sizes) + last - room)
        wanted = -(-excess // share) * share
        enough = (i for i, gone in enumerate(accumulate(sizes), start=1) if gone >= wanted)
        return next(enough, len(sizes))

    def _size(self, engine: Engine, turn: list[Said]) -> int:
        """Tokens of an earlier turn, in a prompt of its own. Counted once."""
        if self._engine is not engine:
            self._engine, self._sizes = engine, {}
        plain = [{k: v for k, v in said.items() if k != "reasoning"} for said in turn]
        key = sha256(repr(plain).encode("utf-8", "backslashreplace")).digest()
        if key not in self._sizes:
            self._sizes[key] = len(engine.prompt(plain).ids)
        return self._sizes[key]
