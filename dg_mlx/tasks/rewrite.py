"""One wrong word or number in a text of which everything else is right and can be pinned."""

from __future__ import annotations

from numpy.random import Generator

from . import words
from .case import Case, Rewrite, choose, pick, user
from .text import addends, sum_key

_SENTENCES = (
    "The {adjective} {animal} {verb} near the {place}.",
    "A {animal} {verb} from the {place} to the {other}.",
    "My {adjective} {animal} has a {thing} and a {gift}.",
    "We saw a {adjective} {animal} with a {thing}.",
)
_STORIES = (
    "{name} had {a} {thing}s and got {b} more. Now {name} has {c}.",
    "There were {a} {thing}s here and {b} there, {c} in all.",
)
_TYPO = ("Fix the typo:\n", "Correct the spelling:\n")
_NUMBER = ("Fix the wrong number:\n", "Correct the number:\n")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOCABULARY = frozenset((*words.WORDS, "near", "from", "with"))


def typo(rng: Generator, /, *, held_out: bool) -> Case:
    """A sentence with one misspelt word, as long as the right one."""
    right = pick(lambda: _sentence(rng), lambda text: f"sentence:{text}", held_out=held_out)
    known = [word for word in right.rstrip(".").split() if word in _VOCABULARY]
    word = choose(rng, known)
    start = right.index(f" {word}") + 1
    return _case(
        "rewrite-typo",
        choose(rng, _TYPO),
        Rewrite(text=_put(right, start, _misspelt(rng, word)), start=start, end=start + len(word)),
        right,
        f"sentence:{right}",
    )


def wrong_number(rng: Generator, /, *, held_out: bool) -> Case:
    """A row of numbers that counts, or a text with a sum, in which one number is wrong."""
    return _row(rng, held_out=held_out) if rng.random() < 0.7 else _sum(rng, held_out=held_out)


def _row(rng: Generator, *, held_out: bool) -> Case:
    """Five or six numbers with the same difference between neighbours."""

    def draw() -> list[int]:
        first, step = int(rng.integers(1, 40)), choose(rng, (1, 2, 3, 5, 10))
        numbers = [first + step * i for i in range(int(rng.integers(5, 7)))]
        return numbers if rng.random() < 0.7 else numbers[::-1]

    numbers = pick(draw, lambda row: f"row:{row}", held_out=held_out)
    wrong = int(rng.integers(len(numbers)))
    before = "".join(f"{n}, " for n in numbers[:wrong])
    right, end = ", ".join(map(str, numbers)), len(before) + len(str(numbers[wrong]))
    text = _put(right, len(before), _wrong(rng, str(numbers[wrong])))
    rewrite = Rewrite(text=text, start=len(before), end=end)
    return _case("rewrite-number", choose(rng, _NUMBER), rewrite, right, f"row:{numbers}")


def _sum(rng: Generator, *, held_out: bool) -> Case:
    pair = addends(rng, 2, held_out=held_out)
    result = str(sum(pair))
    if rng.random() < 0.5:
        story = choose(rng, _STORIES).replace("{c}", "\0")
        right = story.format(
            name=choose(rng, words.NAMES), thing=choose(rng, words.THINGS), a=pair[0], b=pair[1]
        )
    else:
        # Sums beside the one that counts are never held out: they may stand in training's texts.
        sums = [addends(rng, 2, held_out=False) for _ in range(int(rng.integers(0, 3)))]
        lines = [f"{a} + {b} = {a + b}" for a, b in sums]
        lines.insert(int(rng.integers(len(lines) + 1)), f"{pair[0]} + {pair[1]} = \0")
        right = ", ".join(lines)
    start = right.index("\0")
    right = right.replace("\0", result)
    return _case(
        "rewrite-number",
        choose(rng, _NUMBER),
        Rewrite(text=_put(right, start, _wrong(rng, result)), start=start, end=start + len(result)),
        right,
        sum_key(pair),
    )


def _case(task: str, instruction: str, rewrite: Rewrite, right: str, key: str) -> Case:
    return Case(
        task=task,
        messages=(user(instruction + rewrite.text),),
        answer=right,
        key=key,
        rewrite=rewrite,
    )


def _put(text: str, start: int, new: str) -> str:
    return text[:start] + new + text[start + len(new) :]


def _sentence(rng: Generator) -> str:
    place, thing = (rng.permutation(len(all_)) for all_ in (words.PLACES, words.THINGS))
    return choose(rng, _SENTENCES).format(
        adjective=choose(rng, words.ADJECTIVES),
        animal=choose(rng, words.ANIMALS),
        verb=choose(rng, words.VERBS),
        place=words.PLACES[place[0]],
        other=words.PLACES[place[1]],
        thing=words.THINGS[thing[0]],
        gift=words.THINGS[thing[1]],
    )


def _misspelt(rng: Generator, word: str) -> str:
    """Two neighbours swapped or one letter changed, so that no other known word is as near."""
    while True:
        i = int(rng.integers(len(word) - 1))
        if rng.random() < 0.5:
            wrong = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        else:
            wrong = _put(word, i + int(rng.integers(2)), choose(rng, _LETTERS))
        if wrong != word and _near(wrong) == [word]:
            return wrong


def _near(wrong: str) -> list[str]:
    """Known words that one slip of the same length turns into `wrong`, or that it is."""
    swaps = {wrong[:i] + wrong[i + 1] + wrong[i] + wrong[i + 2 :] for i in range(len(wrong) - 1)}
    changes = {_put(wrong, i, letter) for i in range(len(wrong)) for letter in _LETTERS}
    return sorted(_VOCABULARY & (swaps | changes))


def _wrong(rng: Generator, right: str) -> str:
    """Another number of as many digits."""
    low = 10 ** (len(right) - 1) if len(right) > 1 else 0
    wrong = int(rng.integers(low, 10 ** len(right) - 1))
    return str(wrong + (wrong >= int(right)))
