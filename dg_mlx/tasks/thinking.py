"""Questions that are answered after a thought: two steps of arithmetic, a word spelt."""

from __future__ import annotations

from numpy.random import Generator

from . import words
from .case import Case, choose, pick, user
from .text import addends, difference_key, sum_key

_SUM = (
    "What is {a} + {b} - {c}?",
    "{name} has {a} {thing}s, gets {b} and gives away {c}. How many are left?",
)
_SPELL = ("Spell {word}, then reverse it.", "Spell {word} and write it backwards.")


def two_steps(rng: Generator, /, *, held_out: bool) -> Case:
    """A sum, then a difference; both steps are on the same side of the split."""

    def draw() -> tuple[int, int, int]:
        a, b = addends(rng, 2, held_out=held_out)
        return a, b, int(rng.integers(a + b + 1))

    a, b, c = pick(draw, lambda abc: difference_key((abc[0] + abc[1], abc[2])), held_out=held_out)
    question = choose(rng, _SUM).format(
        a=a,
        b=b,
        c=c,
        name=choose(rng, words.NAMES),
        thing=choose(rng, words.THINGS),
    )
    thought = f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}"
    return _case("thinking-sum", question, thought, str(a + b - c), sum_key((a, b)))


def spell(rng: Generator, /, *, held_out: bool) -> Case:
    """A word backwards; the thought spells it."""
    word = words.draw(rng, held_out=held_out)
    question = choose(rng, _SPELL).format(word=word)
    return _case("thinking-spell", question, " ".join(word), word[::-1], words.key(word))


def _case(task: str, question: str, thought: str, answer: str, key: str) -> Case:
    return Case(task=task, messages=(user(question),), answer=answer, key=key, thought=thought)
