"""An answer's ids to visible text, thought and tool calls, as they come.

The pieces of an answer, in the checkpoint's control tokens:

    <|channel>thought\\n … \\n<channel|>         thought; a channel of any other name counts as one
    <|tool_call>call:name{key:value,…}<tool_call|>   strings between <|"|> tokens
    everything else                             visible text

Control tokens never reach the text, wherever an answer is cut. A call that cannot be read is kept
in `broken_calls`; what is not a call at all (no "call:") counts as visible text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .calls import parse_call

Decode = Callable[[list[int]], str]

_CHANNEL_NAME = "thought\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyDelta:
    """What some ids added to an answer."""

    text: str = ""
    thought: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """The ids that structure an answer; what a tokenizer lacks is left out."""

    opens: dict[int, str]
    """Opening token → the state it opens: "thought", "call", "hidden" or "header"."""
    closes: dict[int, int]
    """Opening token → its closing token."""
    ends: frozenset[int]
    """Tokens that end a turn, whatever is open."""
    quote: int | None
    """Surrounds strings in tool calls."""
    special: frozenset[int]
    """All that are never text."""
    bytes: dict[int, int]
    """Tokens of single bytes, for characters that the vocabulary lacks → the byte."""
    thought: tuple[int, int] | None
    """What opens and closes a thought."""
    turn_end: int | None
    """Ends a turn."""

    @staticmethod
    def of(tokenizer: Any) -> ControlTokens:
        """Find them in a Hugging Face tokenizer, by its own names for them or else by spelling."""

        def find(name: str, spelling: str) -> int | None:
            return vocabulary.get(getattr(tokenizer, name, None) or spelling)

        vocabulary: dict[str, int] = tokenizer.get_vocab()
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        pairs = (
            ("thought", find("soc_token", "<|channel>"), find("eoc_token", "<channel|>")),
            ("call", find("stc_token", "<|tool_call>"), find("etc_token", "<tool_call|>")),
            (
                "hidden",
                find("str_token", "<|tool_response>"),
                find("etr_token", "<tool_response|>"),
            ),
            ("hidden", find("std_token", "<|tool>"), find("etd_token", "<tool|>")),
        )
        found = [
            (state, start, end)
            for state, start, end in pairs
            if start is not None and end is not None
        ]
        opens = {start: state for state, start, _ in found}
        closes = {start: end for _, start, end in found}
        turn, quote = find("sot_token", "<|turn>"), find("escape_token", '<|"|>')
        if turn is not None:
            opens[turn] = "header"
        turn_end = find("eot_token", "<turn|>")
        ends = (turn_end, tokenizer.eos_token_id)
        bytes_ = {vocabulary.get(f"<0x{value:02X}>"): value for value in range(256)}
        return ControlTokens(
            opens=opens,
            closes=closes,
            ends=frozenset(i for i in ends if i is not None),
            quote=quote,
            special=frozenset({*tokenizer.all_special_ids, *special, *opens, *closes.values()}),
            bytes={i: value for i, value in bytes_.items() if i is not None},
            turn_end=turn_end,
            thought=next(((s, e) for state, s, e in found if state == "thought"), None),
        )

    def ends_in_thought(self, ids: Sequence[int]) -> bool:
        """Whether a prompt leaves a thought open."""
        closers = set(self.closes.values()) | self.ends
        for token in reversed(ids):
            if token in self.opens or token in closers:
                return self.opens.get(token) == "thought"
        return False


class ReplyParser:
    """Reads one answer. How the ids are split into `feed`s changes nothing."""

    def __init__(
        self, tokenizer: Any, control: ControlTokens | None = None, *, thinking_open: bool = False
    ) -> None:
        def decode(ids: list[int]) -> str:
            text: str = tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            return text

        self.text = ""
        """The visible answer so far; equals the decoded visible ids once finished."""
        self.thought = ""
        """The thoughts so far, one below the other."""
        self.tool_calls: list[dict[str, Any]] = []
        """OpenAI's form, except that arguments are an object."""
        self.broken_calls: list[str] = []
        """Calls that are cut or malformed, as text."""
        self._control = ControlTokens.of(tokenizer) if control is None else control
        self._decode = decode
        self._visible = _Utf8(decode, self._control.bytes)
        self._inside: list[int] = []
        self._enter("thought" if thinking_open else "text", None)

    def feed(self, ids: Sequence[int]) -> ReplyDelta:
        """Read more ids; returns what became certain."""
        text, thought = len(self.text), len(self.thought)
        for token in ids:
            self._take(int(token))
        return ReplyDelta(text=self.text[text:], thought=self.thought[thought:])

    def finish(self) -> ReplyDelta:
        """The answer is over: returns what was held back."""
        text, thought = len(self.text), len(self.thought)
        self._leave()
        self.text += self._visible.flush()
        return ReplyDelta(text=self.text[text:], thought=self.thought[thought:])

    def _take(self, token: int) -> None:
        control = self._control
        if token in control.opens:
            self._leave()
            self._enter(control.opens[token], control.closes.get(token))
        elif token == self._closer or token in control.ends:
            self._leave()
        elif self._state == "call" and token == control.quote:
            self._inside.append(token)
        elif token in control.special:
            pass
        elif self._state == "text":
            self.text += self._visible.add(token)
        elif self._state == "thought":
            self._think(self._channel.add(token))
        elif self._state == "call":
            self._inside.append(token)
        elif self._state == "header" and "\n" in self._decode([token]):
            self._leave()

    def _enter(self, state: str, closer: int | None) -> None:
        self._state, self._closer = state, closer
        if state == "thought":
            if closer is None:  # opened by the prompt
                closers = (
                    end
                    for start, end in self._control.closes.items()
                    if self._control.opens[start] == "thought"
                )
                self._closer = next(closers, None)
            self._channel = _Utf8(self._decode, self._control.bytes)
            self._naming, self._first, self._held = True, True, ""

    def _leave(self) -> None:
        """Back to visible text, whether or not the part that was open is complete."""
        state, self._state, self._closer = self._state, "text", None
        if state == "thought":
            self._think(self._channel.flush(), closing=True)
        elif state == "call":
            ids, self._inside = self._inside, []
            self._close_call(ids)

    def _think(self, text: str, *, closing: bool = False) -> None:
        """Report a channel's text without its name, and without the newline that ends it."""
        self._held += text
        if self._naming:
            if _CHANNEL_NAME.startswith(self._held):
                self._held = "" if closing else self._held
                return
            self._held = self._held.removeprefix(_CHANNEL_NAME)
            self._naming = False
        body = self._held.removesuffix("\n")
        self._held = "" if closing else self._held[len(body) :]
        if body:
            self.thought += "\n" + body if self._first and self.thought else body
            self._first = False

    def _close_call(self, ids: list[int]) -> None:
        text = self._decode(ids)
        call = parse_call(self._segments(ids))
        if call is not None:
            name, arguments = call
            function = {"name": name, "arguments": arguments}
            number = len(self.tool_calls)
            self.tool_calls.append(
                {"type": "function", "id": f"call_{number}", "function": function}
            )
        elif text.startswith("call:") or "call:".startswith(text):
            self.broken_calls.append(text)
        else:
            for token in ids:
                if token != self._control.quote:
                    self.text += self._visible.add(token)

    def _segments(self, ids: list[int]) -> list[str]:
        """The text between quote tokens: structure, string, structure, …"""
        segments: list[list[int]] = [[]]
        for token in ids:
            if token == self._control.quote:
                segments.append([])
            else:
                segments[-1].append(token)
        return [self._decode(part) for part in segments]


class _Utf8:
    """Ids to text, whole characters only; the parts add up to the decoded whole."""

    def __init__(self, decode: Decode, bytes_: dict[int, int]) -> None:
        self._decode, self._bytes = decode, bytes_
        self._ids: list[int] = []
        self._last: list[int] = []

    def add(self, token: int) -> str:
        """What is certain now. A run of bytes is held to its end: one bad byte spoils them all."""
        self._ids.append(token)
        if token in self._bytes or self._decode(self._ids).endswith("\ufffd"):
            return ""
        return self.flush()

    def flush(self) -> str:
        """All that was held back."""
        # Decoded after the id before, since some tokenizers drop a leading space.
        before = len(self._decode(self._last))
        text = self._decode(self._last + self._ids)[before:]
        self._last, self._ids = self._ids[-1:] or self._last, []
        return text
