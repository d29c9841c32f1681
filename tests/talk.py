"""What tests of conversations share: an engine that counts its context, and changes over time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes

from dg_mlx.conversation import Conversation
from dg_mlx.errors import PromptError
from dg_mlx.events import Done, Event


class Talker(fakes.FakeEngine):
    """A token is a character of a message, or a message's mark. Capitals are thoughts."""

    def __init__(
        self, *answers: list[str] | Exception, context: int = 100_000, calls: Any = ()
    ) -> None:
        super().__init__(*answers)
        self.config = SimpleNamespace(
            text=SimpleNamespace(vocab_size=384, max_position_embeddings=context)
        )
        self.calls = [*calls]
        self.prompts = 0

    def prompt(self, messages: Any, *, tools: Any = None, thinking: bool = False) -> Any:
        self.prompts += 1
        count = sum(1 + len(str(m["content"])) for m in messages)
        return SimpleNamespace(ids=[0] * (count + len(tools or [])))

    def stream(self, messages: Any, *, prefix: Any = None, **options: Any) -> Iterator[Event]:
        options.setdefault("settings", self.settings)
        needed = len(self.prompt(messages, tools=options.get("tools")).ids)
        if needed + options["settings"].max_new_tokens > self.config.text.max_position_embeddings:
            raise PromptError(f"the prompt has {needed} tokens; shorten it.")
        if messages[-1]["content"] == "refuse":
            raise PromptError("refused; ask differently.")
        self.prefix = prefix
        return self._events(messages, options)

    def _events(self, messages: Any, options: Any) -> Iterator[Event]:
        for event in super().stream(messages, **options):
            if isinstance(event, Done) and self.calls:
                calls = [self.calls.pop(0)]
                yield Done(reason="tool_call", stats=event.stats, tool_calls=calls)
            else:
                yield event


def ask(conversation: Conversation, content: Any, *answer: str, **options: Any) -> list[Event]:
    """A turn with an answer, one block for each text."""
    return list(conversation.ask(Talker([*answer]), content, **options))


def texts(conversation: Conversation) -> list[str]:
    """The present line, in words."""
    return [message.text for message in conversation.line]


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: waiting for a disk is not what is tested."""
    memory = "/dev/shm"
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)
