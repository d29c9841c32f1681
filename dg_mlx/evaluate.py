"""How often a model answers right, and what its answers cost.

A question is right or wrong as a whole: an answer that is nearly right is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import Engine
from .errors import DGError, PromptError, SettingsError
from .events import Reply, collect
from .infill import Gap, plan
from .settings import GenerationSettings
from .tasks import Case, Rewrite, evaluation, judge, suite, with_files

_KEYS = {"messages", "tools", "thinking", "task"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt whose right answer is known."""

    task: str
    """Answers are counted by it."""
    messages: Sequence[Mapping[str, Any]]
    right: Callable[[Reply], bool]
    tools: Sequence[Mapping[str, Any]] | None = None
    thinking: bool = False
    rewrite: Rewrite | None = None
    """Only this part of a text is to be written; the rest is pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answer."""

    task: str
    right: bool
    steps_per_block: tuple[int, ...]
    tokens: int
    seconds: float
    """Prefill and everything behind it."""
    stopped: bool
    """The model was sure of every block before the limit of steps."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The answers of one task."""

    task: str
    count: int
    solved: float
    error: float
    """Standard error of `solved`, from the count alone."""
    steps_per_block: float
    tokens_per_step: float
    seconds: float
    """Of one answer, on average."""
    sure_and_wrong: float
    """Share of answers that stopped by themselves and were wrong."""


def evaluate(
    engine: Engine,
    questions: Iterable[Question],
    *,
    settings: GenerationSettings | None = None,
    seed: int = 0,
) -> Iterator[Outcome]:
    """Answer one question after the other, each with a seed of its own. Errors as `stream`."""
    settings = settings or engine.settings
    for number, question in enumerate(questions):
        reply = _answer(engine, question, settings, seed + number)
        stats = reply.stats
        yield Outcome(
            task=question.task,
            right=question.right(reply),
            steps_per_block=stats.steps_per_block,
            tokens=stats.tokens,
            seconds=stats.prefill_s + stats.denoise_s + stats.commit_s,
            stopped=max(stats.steps_per_block, default=0) < settings.max_denoising_steps,
            text=reply.text,
        )


def _answer(engine: Engine, question: Question, settings: GenerationSettings, seed: int) -> Reply:
    if question.rewrite is None:
        return engine.generate(
            question.messages,
            settings=settings,
            seed=seed,
            tools=question.tools,
            thinking=question.thinking,
        )
    text, start, end = question.rewrite.text, question.rewrite.start, question.rewrite.end
    present = text[start:end]
    gap = Gap(present=present, length=len(engine.processor.tokenise(present)))
    parts: list[str | Gap] = [text[:start], gap, text[end:]]
    return collect(plan(engine, question.messages, parts, settings=settings).run(engine, seed=seed))


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """Figures per task, in the order of first appearance; `all` last when there are several."""
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.task, []).append(outcome)
    found = [_row(task, same) for task, same in tasks.items()]
    if len(tasks) > 1:
        found.append(_row("all", [o for same in tasks.values() for o in same]))
    return found


def _row(task: str, same: Sequence[Outcome]) -> Row:
    count = len(same)
    solved = sum(o.right for o in same) / count
    steps = [step for o in same for step in o.steps_per_block]
    return Row(
        task=task,
        count=count,
        solved=solved,
        error=math.sqrt(solved * (1 - solved) / count),
        steps_per_block=sum(steps) / max(1, len(steps)),
        tokens_per_step=sum(o.tokens for o in same) / max(1, sum(steps)),
        seconds=sum(o.seconds for o in same) / count,
        sure_and_wrong=sum(o.stopped and not o.right for o in same) / count,
    )


def suite_questions(
    name: str,
    count: int,
    folder: Path,
    *,
    seed: int = 0,
    pictures: bool = True,
    only: Sequence[str] = (),
) -> list[Question]:
    """`count` held-out questions of every task of a suite, the same for the same seed.

    Videos are written into `folder`, as the processor reads them. Without `pictures`, tasks that
    show any are left out; with `only`, all but these. Raises `SettingsError` for an unknown suite
    or task.
    """
    tasks = {task.name: task for task in suite(name)}
    for chosen in only:
        if chosen not in tasks:
            raise SettingsError(f"task is {chosen!r}; choose from {', '.join(tasks)}.")
    found = []
    for task in [tasks[chosen] for chosen in only] or tasks.values():
        for number, case in enumerate(evaluation(task, count, seed=seed)):
            if case.pictures and not pictures:
                break
            place = folder / f"{task.name}-{number}"
            place.mkdir(parents=True)
            found.append(_of_case(with_files(case, place)))
    return found


def _of_case(case: Case) -> Question:
    return Question(
        task=case.task,
        messages=case.messages,
        right=lambda reply: judge(case, reply),
        tools=case.tools or None,
        thinking=case.thinking,
        rewrite=case.rewrite,
    )


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSONL file in the form of training data: the last message is the answer.

    A line may name its `task`; else that is the file's name. Raises `PromptError` naming file and
    line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read ({error}); give a JSONL file of chats.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_question(json.loads(line), path.stem))
            except (ValueError, DGError) as error:
                raise PromptError(f"{path}:{number}: {error}") from None
    if not found:
        raise PromptError(f"{path} is empty; give a JSONL file of chats.")
    return found


def _question(chat: Any, task: str) -> Question:
    if (
        not isinstance(chat, dict)
        or chat.keys() - _KEYS
        or not isinstance(chat.get("messages"), list)
    ):
        raise PromptError(
            f'a line is {{"messages": […]}} with {", ".join(sorted(_KEYS))} and nothing else.'
        )
    *before, last = chat["messages"] or [None]
    if not before or not isinstance(last, dict) or last.get("role") != "assistant":
        raise PromptError("the last message must be the assistant's: it is the right answer.")
    text, calls = last.get("content"), _calls(last.get("tool_calls") or [])
    if not isinstance(text, str | None) or not (text or calls):
        raise PromptError("the right answer must be text or tool calls.")
    return Question(
        task=str(chat.get("task", task)),
        messages=before,
        right=lambda reply: _same(reply, text or "", calls),
        tools=chat.get("tools"),
        thinking=bool(chat.get("thinking", False)),
    )


def _same(reply: Reply, text: str, calls: list[tuple[str, Any]]) -> bool:
    """Right to the last character, but for space around it; calls by name and arguments."""
    return reply.text.strip() == text.strip() and _calls(reply.tool_calls) == calls


def _calls(calls: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    found = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        found.append((str(function.get("name")), arguments))
    return found
