"""Short tasks on numbers, words and brackets, with one right answer each."""

from __future__ import annotations

import json
from typing import Any

from numpy.random import Generator

from . import words
from .case import Case, choose, pick, user

_ADD = ("{a} + {b} =", "What is {a} + {b}?", "Add {a} and {b}.")
_SUBTRACT = ("{a} - {b} =", "What is {a} - {b}?", "Subtract {b} from {a}.")
_SORT = ("Sort {numbers}.", "Sort these numbers: {numbers}")
_REVERSE = ("Reverse {word}.", "Write {word} backwards.")
_COUNT = ("How many {letter} are in {word}?", "Count the letter {letter} in {word}.")
_JSON = ("Fix the brackets: {text}", "Repair this JSON: {text}")
_UPPER = ("Uppercase: {word}", "Write {word} in capital letters.")
_LOWER = ("Lowercase: {word}", "Write {word} in small letters.")

_LONGEST_JSON = 40


def sum_key(pair: tuple[int, int]) -> str:
    """The identity of a sum, in whatever order and task."""
    return f"sum:{min(pair)}+{max(pair)}"


def difference_key(pair: tuple[int, int]) -> str:
    """The identity of a difference."""
    return f"difference:{pair[0]}-{pair[1]}"


def number(rng: Generator, digits: int) -> int:
    """A number of 1 to `digits` digits, each length as likely."""
    length = int(rng.integers(1, digits + 1))
    return int(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def addends(rng: Generator, digits: int, *, held_out: bool) -> tuple[int, int]:
    """Two numbers to add."""
    return pick(lambda: (number(rng, digits), number(rng, digits)), sum_key, held_out=held_out)


def add(rng: Generator, /, *, held_out: bool) -> Case:
    """A sum of two numbers of up to three digits."""
    pair = addends(rng, 3, held_out=held_out)
    question = choose(rng, _ADD).format(a=pair[0], b=pair[1])
    return _case("add", question, str(sum(pair)), sum_key(pair))


def subtract(rng: Generator, /, *, held_out: bool) -> Case:
    """A difference, never below zero, of two numbers of up to three digits."""

    def draw() -> tuple[int, int]:
        one, other = number(rng, 3), number(rng, 3)
        return max(one, other), min(one, other)

    pair = pick(draw, difference_key, held_out=held_out)
    question = choose(rng, _SUBTRACT).format(a=pair[0], b=pair[1])
    return _case("subtract", question, str(pair[0] - pair[1]), difference_key(pair))


def sort(rng: Generator, /, *, held_out: bool) -> Case:
    """Three to six numbers of up to two digits, not in order, to be put in rising order.

    The same numbers in another order are the same case.
    """

    def draw() -> list[int]:
        while True:
            numbers = [number(rng, 2) for _ in range(int(rng.integers(3, 7)))]
            if numbers != sorted(numbers):
                return numbers

    def key(numbers: list[int]) -> str:
        return f"sort:{_joined(sorted(numbers))}"

    numbers = pick(draw, key, held_out=held_out)
    question = choose(rng, _SORT).format(numbers=_joined(numbers))
    return _case("sort", question, _joined(sorted(numbers)), key(numbers))


def _joined(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def reverse(rng: Generator, /, *, held_out: bool) -> Case:
    """A word from its last letter to its first."""
    word = words.draw(rng, held_out=held_out)
    return _case("reverse", choose(rng, _REVERSE).format(word=word), word[::-1], words.key(word))


def count_letter(rng: Generator, /, *, held_out: bool) -> Case:
    """How often a letter is in a word; now and then it is not there."""
    word = words.draw(rng, held_out=held_out)
    absent = sorted(set("abcdefghijklmnopqrstuvwxyz") - set(word))
    repeated = sorted({letter for letter in word if word.count(letter) > 1})
    draw = rng.random()
    letters = absent if draw < 0.15 else repeated if repeated and draw < 0.6 else word
    letter = choose(rng, letters)
    question = choose(rng, _COUNT).format(letter=letter, word=word)
    return _case("count-letter", question, str(word.count(letter)), words.key(word))


def uppercase(rng: Generator, /, *, held_out: bool) -> Case:
    """A word in capital letters."""
    word = words.draw(rng, held_out=held_out)
    return _case("uppercase", choose(rng, _UPPER).format(word=word), word.upper(), words.key(word))


def lowercase(rng: Generator, /, *, held_out: bool) -> Case:
    """A word of capital or mixed letters in small ones."""
    word = words.draw(rng, held_out=held_out)
    style = rng.random()
    mixed = "".join(c.upper() if rng.random() < 0.5 else c for c in word)
    shown = word.upper() if style < 0.5 or mixed == word else mixed
    return _case("lowercase", choose(rng, _LOWER).format(word=shown), word, words.key(word))


def fix_json(rng: Generator, /, *, held_out: bool) -> Case:
    """A short JSON value with closing brackets missing at its end, or one of the wrong kind."""
    text = pick(lambda: _short_json(rng), lambda text: f"json:{text}", held_out=held_out)
    question = choose(rng, _JSON).format(text=_broken(rng, text))
    return _case("fix-json", question, text, f"json:{text}")


def _case(task: str, question: str, answer: str, key: str) -> Case:
    return Case(task=task, messages=(user(question),), answer=answer, key=key)


def _short_json(rng: Generator) -> str:
    while True:
        text = json.dumps(_container(rng, 3), separators=(",", ":"))
        if len(text) <= _LONGEST_JSON:
            return text


def _container(rng: Generator, depth: int) -> Any:
    """A list or an object, never empty: what is inside shows which of both it is."""
    count = int(rng.integers(1, 4))
    if rng.random() < 0.5:
        return [_item(rng, depth - 1) for _ in range(count)]
    keys = [choose(rng, ("a", "b", "c", "id", "n", "name", "x", "y")) for _ in range(count)]
    return {key: _item(rng, depth - 1) for key in keys}


def _item(rng: Generator, depth: int) -> Any:
    if depth > 0 and rng.random() < 0.4:
        return _container(rng, depth)
    return number(rng, 2) if rng.random() < 0.7 else choose(rng, ("cat", "red", True, False, None))


def _broken(rng: Generator, text: str) -> str:
    """The text with its closing brackets wrong in a way that has one repair."""
    trailing = len(text) - len(text.rstrip("]}"))
    if rng.random() < 0.5:
        return text[: -int(rng.integers(1, min(trailing, 2) + 1))]
    at = choose(rng, [i for i, character in enumerate(text) if character in "]}"])
    return text[:at] + ("]" if text[at] == "}" else "}") + text[at + 1 :]
