"""Small tasks: every answer is right, and what is held out stays out of training."""

from __future__ import annotations

import colorsys
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dg_mlx.nano
from dg_mlx.config import ModelConfig
from dg_mlx.errors import SettingsError
from dg_mlx.processor import Processor
from dg_mlx.processor.video import read_frames
from dg_mlx.tasks import (
    SUITES,
    TASKS,
    Case,
    draw,
    evaluation,
    is_held_out,
    judge,
    other,
    rewrite,
    sudoku,
    suite,
    text,
    tools,
    with_files,
    words,
)

CANVAS = 112
TEXT_TASKS = tuple(n for n in TASKS if not n.startswith(("sudoku", "picture", "video")))
PICTURE_TASKS = tuple(name for name in TASKS if name.startswith("picture"))
SUDOKU_TASKS = tuple(name for name in TASKS if name.startswith("sudoku"))
CONTROL = re.compile(r"<\|?\"?[a-z_]*\|?>|<\|\"\|>")
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}

tasks = pytest.mark.parametrize("name", TASKS)


@dataclass
class Reply:
    text: str = ""
    thought: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


def cases(name: str, count: int, *, seed: int = 0) -> list[Case]:
    """Half for training, half held out."""
    rng = np.random.default_rng(seed)
    return [TASKS[name].make(rng, held_out=bool(i % 2)) for i in range(count)]


def asked(case: Case) -> str:
    """The text of the user's question."""
    content = case.messages[0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def right(case: Case) -> Reply:
    function = case.call and {"function": case.call}
    return Reply(case.answer, case.thought or "", [function] if function else [])


def tokens(text: str) -> int:
    """Tokens of nano's tokenizer, one a character but for control tokens."""
    return len(CONTROL.sub("#", text))


# What every task has in common.


def test_suites_name_tasks():
    assert set(SUITES["nano"]) == set(TASKS)
    assert set(SUITES["sudoku"]) == set(SUDOKU_TASKS)
    assert [task.name for task in suite("sudoku")] == list(SUITES["sudoku"])
    assert all(name == task.name and task.about for name, task in TASKS.items())
    with pytest.raises(SettingsError, match="suite is 'x'; choose one of nano, sudoku"):
        suite("x")


@tasks
def test_same_seed_same_case(name):
    assert cases(name, 4) == cases(name, 4)
    assert cases(name, 4) != cases(name, 4, seed=1)


@tasks
def test_sides_of_the_split(name):
    for i, case in enumerate(cases(name, 20)):
        assert case.task == name
        assert is_held_out(case.key) == bool(i % 2)


@tasks
def test_lengths_and_characters(name):
    for case in cases(name, 30):
        assert tokens(case.target) < CANVAS, case.target
        assert len(case.answer) <= (107 if "9x9" in name else 100)
        question = asked(case)
        assert 0 < len(question) <= 130
        said = [question, case.answer, case.thought or "", str(case.messages[1:]), str(case.tools)]
        assert all(c == "\n" or 32 <= ord(c) < 127 for c in "".join(said))
        assert (case.call is None) == bool(case.answer)
        assert (case.rewrite is not None) == name.startswith("rewrite")


@tasks
def test_judge(name):
    for case in cases(name, 6):
        good = right(case)
        assert judge(case, good)
        assert judge(case, case.answer) == (case.call is None and not case.thinking)
        extra = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
        assert not judge(case, Reply(good.text + "x", good.thought, good.tool_calls))
        assert not judge(case, Reply("", good.thought))
        assert not judge(case, Reply(good.text, good.thought, [*good.tool_calls, extra]))
        assert judge(case, Reply(good.text, "", good.tool_calls)) != case.thinking
        for i, character in enumerate(case.answer):
            near = case.answer[:i] + chr(ord(character) ^ 1) + case.answer[i + 1 :]
            assert not judge(case, Reply(near, good.thought))


def test_evaluation_is_fixed_and_held_out():
    task = TASKS["add"]
    first = list(evaluation(task, 5))
    assert first == list(evaluation(task, 5)) == list(evaluation(task, 9))[:5]
    assert first != list(evaluation(task, 5, seed=1))
    assert all(is_held_out(case.key) for case in first)


def test_the_split_is_the_same_everywhere():
    known = {f"word:{word}": is_held_out(f"word:{word}") for word in ("tiger", "level", "moon")}
    assert known == {"word:tiger": False, "word:level": False, "word:moon": False}
    code = (
        "import hashlib, numpy as np; from dg_mlx.tasks import TASKS\n"
        "made = [task.make(np.random.default_rng(1), held_out=held) for task in TASKS.values()"
        " for held in (False, True)]\n"
        "said = repr([(c.target, c.key, [p.tobytes() for p in c.pictures]) for c in made])\n"
        "print(hashlib.sha256(said.encode()).hexdigest())"
    )
    digests = set()
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_tenth_is_held_out():
    rng = np.random.default_rng(0)
    families = {
        "sums": {text.sum_key((a, b)) for a in range(100) for b in range(100)},
        "differences": {text.difference_key((a, b)) for a in range(100) for b in range(a)},
        "words": {words.key(words.make_up(rng)) for _ in range(3000)},
        "grids": {
            sudoku.key(grid, grid) for grid in (sudoku.make_grid(rng, 6) for _ in range(600))
        },
    }
    for name, keys in families.items():
        share = sum(map(is_held_out, keys)) / len(keys)
        assert 0.07 < share < 0.13, name


def test_held_out_values_appear_in_no_training_text():
    """Not only is the key kept: sums and words of evaluation are in no task's training cases."""
    rng = np.random.default_rng(0)
    for name in ("add", "rewrite-number", "thinking-sum"):
        for _ in range(200):
            case = TASKS[name].make(rng, held_out=False)
            said = f"{case.answer} {case.thought}" + (f"\n{asked(case)}" if name == "add" else "")
            for a, b in re.findall(r"(\d+) \+ (\d+)", said):
                assert not is_held_out(text.sum_key((int(a), int(b))))
            for a, b in re.findall(r"(\d+) - (\d+)", case.thought or ""):
                assert not is_held_out(text.difference_key((int(a), int(b))))
    for name in ("reverse", "count-letter", "uppercase", "lowercase"):
        for _ in range(100):
            said = asked(TASKS[name].make(rng, held_out=False))
            shown = re.search(r"(?:^Reverse|case:|^Write) (\w+)|in (\w+)", said)
            assert shown is not None
            assert not is_held_out(words.key(shown[1] or shown[2]))


# Sudoku.


def counted(cells: str, limit: int = 2) -> int:
    """Solutions by plain backtracking over candidate sets."""
    size = int(len(cells) ** 0.5)
    high, wide = BOXES[size]
    grid = [0 if cell == "." else int(cell) for cell in cells]

    def fits(at: int) -> set[int]:
        row, col = divmod(at, size)
        top, left = row - row % high, col - col % wide
        seen = {grid[row * size + c] for c in range(size)}
        seen |= {grid[r * size + col] for r in range(size)}
        seen |= {grid[(top + i) * size + left + j] for i in range(high) for j in range(wide)}
        return set(range(1, size + 1)) - seen

    def search(limit: int) -> int:
        blanks = [(fits(at), at) for at in range(len(grid)) if not grid[at]]
        if not blanks:
            return 1
        options, at = min(blanks, key=lambda blank: len(blank[0]))
        found = 0
        for digit in options:
            grid[at] = digit
            found += search(limit - found)
            if found >= limit:
                break
        grid[at] = 0
        return found

    return search(limit)


def valid(solution: str) -> bool:
    size = int(len(solution) ** 0.5)
    high, wide = BOXES[size]
    grid = np.array(list(solution), int).reshape(size, size)
    boxes = grid.reshape(size // high, high, size // wide, wide).swapaxes(1, 2).reshape(size, size)
    wanted = np.arange(1, size + 1)
    return all((np.sort(units) == wanted).all() for units in (grid, grid.T, boxes))


def cells_of(rows: str) -> str:
    return "".join(line[2:] for line in rows.splitlines())


@pytest.mark.parametrize("name", SUDOKU_TASKS)
def test_sudoku_has_one_solution(name):
    maker = TASKS[name].make
    assert isinstance(maker, sudoku.Puzzles)
    for case in cases(name, 8):
        question = re.search(r"^A [\s\S]*", asked(case), re.MULTILINE)
        assert question is not None
        cells, solution = cells_of(question[0]), cells_of(case.answer)
        assert len(cells) == maker.size**2 and valid(solution)
        assert all(cell in (".", digit) for cell, digit in zip(cells, solution, strict=True))
        assert maker.fewest <= len(cells) - cells.count(".") <= maker.most
        assert counted(cells) == 1
        assert case.answer.startswith("A ") and case.answer.count("\n") == maker.size - 1


def test_sudoku_keys_ignore_the_names_of_digits():
    rng = np.random.default_rng(0)
    for size in (4, 6, 9):
        cells, solution = sudoku.make_puzzle(rng, size, {4: 6, 6: 18, 9: 40}[size], held_out=False)
        names = dict(zip("123456789"[:size], rng.permutation(size) + 1, strict=True))
        other_cells, other_solution = (
            "".join(str(names.get(cell, cell)) for cell in text) for text in (cells, solution)
        )
        assert sudoku.key(cells, solution) == sudoku.key(other_cells, other_solution)
        assert (sudoku.key(cells, solution) == sudoku.key(solution, solution)) == (size != 4)


def test_solver_counts():
    assert sudoku.solutions("11.." + "." * 12) == []
    assert len(sudoku.solutions("." * 16, 1000)) == 288
    rng = np.random.default_rng(0)
    for _ in range(10):
        grid = sudoku.make_grid(rng, 6)
        keep = rng.random(36) < 0.4
        cells = "".join(c if k else "." for c, k in zip(grid, keep, strict=True))
        assert len(sudoku.solutions(cells, 20)) == counted(cells, 20)


def test_difficulty():
    grid = sudoku.make_grid(np.random.default_rng(0), 9)
    assert sudoku.difficulty("." + grid[1:]) == "naked singles"
    # Two puzzles of 17 givens: hidden singles solve the first, not the second.
    hidden = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
    hard = "400000805030000000000700000020000060000080400000010000000603070500200000104000000"
    assert sudoku.difficulty(hidden.replace("0", ".")) == "hidden singles"
    assert sudoku.difficulty(hard.replace("0", ".")) == "search"
    assert len(sudoku.solutions(hard.replace("0", "."))) == 1


def test_another_source_of_puzzles():
    asked_for = []

    def source(rng, size, givens):
        asked_for.append((size, givens))
        return sudoku.make_puzzle(rng, size, givens, held_out=bool(rng.integers(2)))

    maker = sudoku.Puzzles(name="x", size=6, fewest=20, most=20, source=source)
    case = maker(np.random.default_rng(0), held_out=True)
    assert set(asked_for) == {(6, 20)}
    assert is_held_out(case.key) and case.task == "x"


# Text.


def test_sums_and_differences():
    for case in cases("add", 60):
        assert sum(numbers(asked(case))) == int(case.answer)
    for case in cases("subtract", 60):
        one, other_ = numbers(asked(case))
        assert int(case.answer) == abs(one - other_)
        assert (one >= other_) != asked(case).startswith("Subtract") or one == other_


def test_sort():
    for case in cases("sort", 60):
        assert numbers(case.answer) == sorted(numbers(asked(case))) != numbers(asked(case))


def test_words():
    for case in cases("reverse", 60):
        assert "".join(reversed(case.answer)) in re.findall(r"[a-z]+", asked(case))
    for case in cases("count-letter", 60):
        letter, word = re.findall(r"(?:many|letter) ([a-z]) (?:are )?in ([a-z]+)", asked(case))[0]
        assert int(case.answer) == len([c for c in word if c == letter])
    for name in ("uppercase", "lowercase"):
        for case in cases(name, 60):
            word = re.findall(r": (\w+)$|Write (\w+)", asked(case))[0]
            word = word[0] or word[1]
            assert case.answer == getattr(word, name[:5])() != word


def repaired(broken: str) -> str:
    """Every closing bracket becomes the one that is open; what is open at the end is closed."""
    stack, out = [], ""
    for character in broken:
        if character in "[{":
            stack.append("]" if character == "[" else "}")
        out += stack.pop() if character in "]}" else character
    return out + "".join(reversed(stack))


def test_json():
    for case in cases("fix-json", 100):
        broken = asked(case).split(": ", 1)[1]
        with pytest.raises(ValueError, match="line 1"):
            json.loads(broken)
        json.loads(case.answer)
        assert repaired(broken) == case.answer


@pytest.mark.parametrize("name", ["rewrite-typo", "rewrite-number"])
def test_rewrites(name):
    vocabulary = {*words.WORDS, "near", "from", "with"}
    for case in cases(name, 100):
        given_, start, end = case.rewrite.text, case.rewrite.start, case.rewrite.end
        assert asked(case).endswith("\n" + given_)
        assert len(given_) == len(case.answer) and 0 <= start < end <= len(given_)
        assert given_[:start] == case.answer[:start] and given_[end:] == case.answer[end:]
        wrong, fixed = given_[start:end], case.answer[start:end]
        assert wrong != fixed
        assert not (given_[:start][-1:] + given_[end:][:1]).strip(" .,")
        if name == "rewrite-typo":
            assert fixed in vocabulary and wrong not in vocabulary
            assert sum(a != b for a, b in zip(wrong, fixed, strict=True)) <= 2
        elif len({b - a for a, b in itertools.pairwise(numbers(case.answer))}) == 1:
            steps = itertools.pairwise(numbers(given_))  # one number is wrong, so one or two steps
            assert len({b - a for a, b in steps}) > 1 and str(int(wrong)) == wrong
        else:
            before = numbers(case.answer[:start])[-2:]
            assert sum(before) == int(fixed) and str(int(wrong)) == wrong
            for a, b, c in re.findall(r"(\d+) \+ (\d+) = (\d+)", case.answer):
                assert int(a) + int(b) == int(c)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(words.WORDS)), st.integers(0, 2**32))
def test_a_typo_has_one_reading(word, seed):
    """Among known words, only the right one is a slip away."""
    if len(word) < 3:
        return
    wrong = rewrite._misspelt(np.random.default_rng(seed), word)

    def a_slip(known: str) -> bool:
        differ = [i for i, (a, b) in enumerate(zip(known, wrong, strict=True)) if a != b]
        if len(differ) != 2:
            return len(differ) < 2
        i, j = differ
        return j == i + 1 and known[i] == wrong[j] and known[j] == wrong[i]

    assert [known for known in {*words.WORDS} if len(known) == len(wrong) and a_slip(known)] == [
        word
    ]


# Thoughts, tools, anything else.


def test_thoughts():
    for case in cases("thinking-sum", 60):
        a, b, c = numbers(asked(case))
        assert int(case.answer) == a + b - c >= 0
        for line in case.thought.splitlines():
            one, sign, two, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", line).groups()
            assert int(one) + (int(two) if sign == "+" else -int(two)) == int(result)
        assert case.thought.endswith(f"= {case.answer}")
    for case in cases("thinking-spell", 60):
        word = case.thought.replace(" ", "")
        assert word in asked(case) and case.thought == " ".join(word)
        assert case.answer == word[::-1]


def test_calls():
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools.TOOLS}
    assert len(declared) == 3
    kinds = {"string": str, "integer": int}
    for case in cases("tool-call", 60):
        arguments = case.call["arguments"]
        schema = declared[case.call["name"]]
        assert case.tools == tools.TOOLS and arguments.keys() == set(schema["properties"])
        for key, value in arguments.items():
            assert isinstance(value, kinds[schema["properties"][key]["type"]])
            assert re.search(rf"\b{value}\b", asked(case))
        for key, value in arguments.items():
            near = {**arguments, key: value + ("x" if isinstance(value, str) else 1)}
            call = {"function": {"name": case.call["name"], "arguments": near}}
            assert not judge(case, Reply(tool_calls=[call]))
        renamed = {"function": {"name": "other", "arguments": arguments}}
        assert not judge(case, Reply(tool_calls=[renamed]))


def test_a_call_is_right_by_value():
    case = next(c for c in cases("tool-call", 60) if c.call["name"] == "multiply")
    a, b = case.call["arguments"].values()
    for arguments, good in (
        ({"b": b, "a": a}, True),
        ({"a": float(a), "b": b}, True),
        ({"a": str(a), "b": b}, False),
        ({"a": a}, False),
        ({"a": a, "b": b, "c": 1}, False),
    ):
        call = {"function": {"name": "multiply", "arguments": arguments}}
        assert judge(case, Reply(tool_calls=[call])) == good


def test_answers_from_results():
    for case in cases("tool-answer", 60):
        question, called, result = case.messages
        function = called["tool_calls"][0]["function"]
        said = result["content"]
        facts = re.findall(r"-?\d+(?::\d+)?", said) + re.findall(
            "sunny|cloudy|rainy|windy|foggy|snowy", said
        )
        assert facts and all(fact in case.answer for fact in facts)
        if function["name"] == "multiply":
            assert int(said) == function["arguments"]["a"] * function["arguments"]["b"]
        if function["name"] == "weather":
            assert function["arguments"]["city"] in case.answer
        assert question["role"] == "user" and case.call is None


def test_other():
    assert not is_held_out(other._FIXED_KEY)
    made = cases("other", 200)
    assert {case.answer for case in made} == {other.ANSWER}
    assert len({asked(case) for case in made}) > 150
    assert 0 < sum(bool(case.tools) for case in made) < 60
    greetings = [case for case in made if case.key == other._FIXED_KEY]
    assert greetings and {asked(case).lower() for case in greetings} <= set(other._FIXED)


# Through nano's processor.


@pytest.fixture(scope="module")
def processor() -> Processor:
    folder = Path(dg_mlx.nano.__file__).parent
    return Processor(folder, ModelConfig.load(folder))


@pytest.mark.parametrize("name", SUDOKU_TASKS + TEXT_TASKS)
def test_nano_reads_and_writes(processor, name):
    control = set(range(processor.tokenizer.convert_tokens_to_ids("<0xFF>") + 1))
    characters = control - set(range(processor.tokenizer.convert_tokens_to_ids("<0x00>")))
    for case in cases(name, 6):
        prompt = processor.encode(case.messages, tools=case.tools or None, thinking=case.thinking)
        target = processor.tokenizer.encode(case.target, add_special_tokens=False)
        assert not characters & {*prompt.ids, *target}  # no bytes of characters it lacks
        assert len(target) == tokens(case.target) < CANVAS
        assert len(prompt.ids) <= (500 if case.tools else 200)
        assert asked(case) in processor.decode(prompt.ids)
        reply = processor.reply(thinking_open=prompt.thinking_open)
        reply.feed(target)
        reply.finish()
        assert judge(case, reply) and reply.thought == (case.thought or "")


# Pictures.


def mask(image: Image.Image) -> np.ndarray:
    """Where a picture is coloured: paper is grey, and its noise is weak."""
    pixels = np.asarray(image, int)
    return pixels.max(-1) - pixels.min(-1) > 90


def pieces(found: np.ndarray) -> list[int]:
    """Pixels of each connected piece, specks left out."""
    left, sizes = set(zip(*map(np.ndarray.tolist, np.nonzero(found)), strict=True)), []
    while left:
        edge, size = [left.pop()], 0
        while edge:
            row, col = edge.pop()
            size += 1
            near = {(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)} & left
            left -= near
            edge += near
        sizes.append(size)
    return [size for size in sizes if size > 8]


def color_of(image: Image.Image) -> str:
    inside = np.asarray(image, float)[mask(image)].mean(0) / 255
    hue = 360 * colorsys.rgb_to_hsv(*inside)[0]
    near = {name: abs((hue - wanted + 180) % 360 - 180) for name, wanted in draw.COLORS.items()}
    return min(near, key=near.__getitem__)


def shape_of(image: Image.Image) -> str:
    """By the share of the circle around it that it fills, and by how near its edge comes."""
    found = mask(image)
    rows, cols = np.nonzero(found)
    away = np.hypot(rows - rows.mean(), cols - cols.mean())
    rest = np.argwhere(~found) - [rows.mean(), cols.mean()]
    share = len(rows) / (np.pi * away.max() ** 2)
    if share > 0.8:
        return "circle"
    if share < 0.53:
        return "triangle"
    return "square" if np.hypot(*rest.T).min() / away.max() > 0.6 else "cross"


def sharp(case: Case) -> bool:
    """Whether shapes are large enough for `shape_of`."""
    return all(mask(image).sum() > 350 for image in case.pictures)


@pytest.mark.parametrize("name", PICTURE_TASKS)
def test_pictures_are_small_rgb_and_differ(name):
    made = cases(name, 12)
    for image in (image for case in made for image in case.pictures):
        assert image.mode == "RGB" and image.width == image.height and 64 <= image.width <= 112
    assert len({case.pictures[0].tobytes() for case in made}) == len(made)
    assert len({case.answer for case in cases(name, 40)}) > 1


def test_one_thing():
    for case in cases("picture-color", 40):
        assert color_of(case.pictures[0]) == case.answer
    for case in filter(sharp, cases("picture-shape", 60)):
        assert shape_of(case.pictures[0]) == case.answer
    for case in filter(sharp, cases("picture-object", 40)):
        article, color, shape = case.answer.split()
        assert (color, shape) == (color_of(case.pictures[0]), shape_of(case.pictures[0]))
        assert article == ("an" if color == "orange" else "a")


def test_every_combination_is_trained_and_evaluated():
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        made = {TASKS["picture-object"].make(rng, held_out=held_out).answer for _ in range(250)}
        assert len(made) == len(draw.COLORS) * len(draw.SHAPES)


def test_count():
    for case in cases("picture-count", 60):
        assert len(pieces(mask(case.pictures[0]))) == int(case.answer)


def test_two_pictures():
    for case in filter(sharp, cases("picture-same-shape", 60)):
        one, two = map(shape_of, case.pictures)
        assert case.answer == ("yes" if one == two else "no")
    for case in cases("picture-same-color", 40):
        one, two = map(color_of, case.pictures)
        assert case.answer == ("yes" if one == two else "no")
    for case in cases("picture-larger", 40):
        one, two = (mask(image).sum() for image in case.pictures)
        assert case.answer == ("first" if one > two else "second")
        assert max(one, two) > 1.5 * min(one, two)
        assert case.pictures[0].size == case.pictures[1].size


def test_digits_differ_from_each_other():
    paper = draw.Sheet(side=64, grey=0, noise=0)
    at = draw.Spot(x=32, y=32, radius=28, turn=0)
    pen = draw.Stroke(width=0.6, slant=0.1, pen=0.12, color=(255, 255, 255))
    rng = np.random.default_rng(0)
    drawn = [np.asarray(draw.digits(rng, paper, [(d, at, pen)], []), int) for d in range(10)]
    for i, one in enumerate(drawn):
        assert one[0].max() == one[-1].max() == one[:, 0].max() == one[:, -1].max() == 0
        for two in drawn[:i]:
            assert (abs(one - two) > 128).mean() > 0.03


def test_drawn_sudoku(monkeypatch):
    """What is drawn, put back into cells, has the answer as its one solution."""
    drawn, original = [], draw.digits

    def spy(rng, paper, written, lines):
        drawn.append((written, lines))
        return original(rng, paper, written, lines)

    monkeypatch.setattr(draw, "digits", spy)
    for case, (written, lines) in zip(cases("picture-sudoku", 20), drawn, strict=True):
        across = sorted({x for line in lines for x, _ in line.points})
        down = sorted({y for line in lines for _, y in line.points})
        cells = ["."] * 16
        for digit, at, _ in written:
            col = sum(x <= at.x for x in across) - 1
            row = sum(y <= at.y for y in down) - 1
            cells[4 * row + col] = str(digit)
        assert len(across) == len(down) == 5 and 6 <= len(written) <= 12
        assert max(across[-1], down[-1]) < case.pictures[0].width
        assert counted("".join(cells)) == 1
        assert sudoku.solutions("".join(cells)) == [cells_of(case.answer)]
        assert sudoku.key("".join(cells), cells_of(case.answer)) == case.key


# Video.


def test_a_moving_dot():
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for case in cases("video-direction", 30):
        places = np.array([np.argwhere(mask(frame)).mean(0) for frame in case.pictures])
        steps = np.diff(places, axis=0)
        towards = steps @ np.array(ways[case.answer])
        assert len(places) == 4 and (towards > 4).all()
        assert (abs(np.linalg.norm(steps, axis=1) - towards) < 1).all()


def test_which_came_first():
    for case in filter(sharp, cases("video-first", 40)):
        seen = [shape_of(frame) for frame in case.pictures]
        order = [shape for i, shape in enumerate(seen) if i == 0 or seen[i - 1] != shape]
        assert len(order) == 2 and order[0] == case.answer
        assert all(shape in asked(case) for shape in order)


@pytest.mark.parametrize("name", ["video-direction", "video-first"])
def test_clips_as_files(name, tmp_path):
    (case,) = cases(name, 1)
    filed = with_files(case, tmp_path)
    part = filed.messages[0]["content"][0]
    frames = read_frames(part["video"], 32, lambda frame: frame)
    assert [seconds for seconds, _ in frames] == [0, 1, 2, 3]
    assert [image.tobytes() for _, image in frames] == [i.tobytes() for i in case.pictures]
    assert filed.answer == case.answer and filed.pictures == () and len(case.pictures) == 4
