"""Anything else: one sentence says what the model can do."""

from __future__ import annotations

from numpy.random import Generator

from . import words
from .case import Case, choose, pick, user
from .tools import TOOLS

ANSWER = "I am a toy: Sudoku, sums, words, tools."

_FIXED_KEY = "other:greeting"
"""Greetings are so few that none is held out."""
_FIXED_TEXT = (
    "hi|hello|hey|good morning|hi nano|hello there|help|help me|who are you?|what are you?|"
    "what can you do?|what is this?|how does this work?|what is your name?|how are you?|thanks|"
    "thank you|ok|test|bye"
)
_ASKED_TEXT = (
    "what is {a}?|tell me about {a}|write a poem about {a}|write a story about {a} and {b}|"
    "tell me a joke about {a}|explain {a}|why is the {a} {b}?|translate {a} into french|"
    "who made the {a}?|give me a recipe with {a}|write python code for {a}|is {a} better than {b}?|"
    "do you like {a}?|where is {a}?|when did {a} {b}?|what is the capital of {a}?|make me a {a}|"
    "play {a} with me|{a}|{a} {b}|{a} {b} {c}|can you {a} a {b}?|who is {a}?|{a} or {b}?"
)
_FIXED, _ASKED = _FIXED_TEXT.split("|"), _ASKED_TEXT.split("|")


def other(rng: Generator, /, *, held_out: bool) -> Case:
    """A question that no other task answers; now and then tools are at hand that do not help."""
    if not held_out and rng.random() < 0.15:
        question, key = choose(rng, _FIXED), _FIXED_KEY
    else:
        question = pick(lambda: _question(rng), _key, held_out=held_out)
        key = _key(question)
    if rng.random() < 0.5:
        question = question[0].upper() + question[1:]
    return Case(
        task="other",
        messages=(user(question),),
        answer=ANSWER,
        key=key,
        tools=TOOLS if rng.random() < 0.1 else (),
    )


def _question(rng: Generator) -> str:
    if rng.random() < 0.1:
        return "".join(chr(c) for c in rng.integers(97, 123, int(rng.integers(1, 20))))
    a, b, c = (choose(rng, words.WORDS) for _ in range(3))
    return choose(rng, _ASKED).format(a=a, b=b, c=c)


def _key(question: str) -> str:
    return f"other:{question}"
