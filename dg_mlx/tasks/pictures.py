"""Questions about small pictures.

A rendering is held out by paper, places and sizes, whatever shapes, colours or digits are there: no
combination of those is missing from training.
"""

from __future__ import annotations

from math import hypot
from typing import Any

from numpy.random import Generator
from PIL import Image

from . import draw, sudoku
from .case import Case, choose, pick, user
from .draw import COLORS, SHAPES, Line, Sheet, Spot, Stroke, Thing

_COLOR = ("What color is it?", "What colour is this?")
_SHAPE = ("What shape is it?", "Which shape is this?")
_OBJECT = ("What is this?", "What do you see?")
_COUNT = ("How many shapes are there?", "Count the shapes.")
_DIGIT = ("Which digit is this?", "Read the digit.")
_SAME_SHAPE = ("Do both have the same shape?", "Same shape?")
_SAME_COLOR = ("Do both have the same color?", "Same colour?")
_LARGER = ("Which is larger, the first or the second?", "Which one is larger?")
_SUDOKU = ("Solve this sudoku.", "Solve:")
_MOST = 6  # things to count
_SUDOKU_SIDES = (96, 104, 112)
_SUDOKU_GIVENS = (6, 12)

_Scene = tuple[Sheet, tuple[Spot, ...]]


def color(rng: Generator, /, *, held_out: bool) -> Case:
    """The colour of one thing."""
    scene, image, thing = _one(rng, held_out)
    return _case("picture-color", choose(rng, _COLOR), [image], thing[0], _key(scene))


def shape(rng: Generator, /, *, held_out: bool) -> Case:
    """The shape of one thing."""
    scene, image, thing = _one(rng, held_out)
    return _case("picture-shape", choose(rng, _SHAPE), [image], thing[1], _key(scene))


def thing(rng: Generator, /, *, held_out: bool) -> Case:
    """Colour and shape of one thing: "a red circle"."""
    scene, image, (name, kind) = _one(rng, held_out)
    article = "an" if name[0] in "aeiou" else "a"
    answer = f"{article} {name} {kind}"
    return _case("picture-object", choose(rng, _OBJECT), [image], answer, _key(scene))


def count(rng: Generator, /, *, held_out: bool) -> Case:
    """One to six things of any shape and colour, apart from each other."""
    number = int(rng.integers(1, _MOST + 1))
    scene = pick(lambda: _scattered(rng, number), _key, held_out=held_out)
    things = [_thing(rng, at)[0] for at in scene[1]]
    image = draw.shapes(rng, scene[0], things)
    return _case("picture-count", choose(rng, _COUNT), [image], str(number), _key(scene))


def digit(rng: Generator, /, *, held_out: bool) -> Case:
    """A digit from 0 to 9, written with a pen."""
    scene = pick(lambda: _scene(rng, (0.22, 0.45)), _key, held_out=held_out)
    paper, (at,) = scene
    number = int(rng.integers(10))
    image = draw.digits(rng, paper, [(number, at, stroke(rng, paper))], [])
    return _case("picture-digit", choose(rng, _DIGIT), [image], str(number), _key(scene))


def same_shape(rng: Generator, /, *, held_out: bool) -> Case:
    """Two pictures: is the shape the same? Colours differ or not, by chance."""
    one, other = _pair(rng, SHAPES)
    kinds = [(choose(rng, list(COLORS)), kind) for kind in (one, other)]
    return _two("picture-same-shape", choose(rng, _SAME_SHAPE), rng, kinds, held_out)


def same_color(rng: Generator, /, *, held_out: bool) -> Case:
    """Two pictures: is the colour the same? Shapes differ or not, by chance."""
    one, other = _pair(rng, tuple(COLORS))
    kinds = [(name, choose(rng, SHAPES)) for name in (one, other)]
    return _two("picture-same-color", choose(rng, _SAME_COLOR), rng, kinds, held_out)


def larger(rng: Generator, /, *, held_out: bool) -> Case:
    """Two pictures of one shape: which is larger, by at least two fifths?"""

    def drawn() -> tuple[_Scene, _Scene]:
        side = choose(rng, draw.SIDES)
        while True:
            scenes = _scene(rng, (0.1, 0.36), side), _scene(rng, (0.1, 0.36), side)
            radii = sorted(spots[0].radius for _, spots in scenes)
            if radii[1] >= 1.4 * radii[0]:
                return scenes

    scenes = pick(drawn, lambda both: _key(*both), held_out=held_out)
    kind = choose(rng, SHAPES)
    images = [draw.shapes(rng, paper, [_thing(rng, at, shape=kind)[0]]) for paper, (at,) in scenes]
    first = scenes[0][1][0].radius > scenes[1][1][0].radius
    answer = "first" if first else "second"
    return _case("picture-larger", choose(rng, _LARGER), images, answer, _key(*scenes))


def sudoku_picture(rng: Generator, /, *, held_out: bool) -> Case:
    """A drawn 4x4 Sudoku; the answer is rows of text. Held out by puzzle, as its text is."""
    givens = int(rng.integers(_SUDOKU_GIVENS[0], _SUDOKU_GIVENS[1] + 1))
    cells, solution = sudoku.make_puzzle(rng, 4, givens, held_out=held_out)
    paper = draw.sheet(rng, choose(rng, _SUDOKU_SIDES))
    cell = int(rng.integers(paper.side // 5, paper.side // 4))
    left, top = (int(n) for n in rng.integers(2, paper.side - 4 * cell - 1, 2))
    pen = draw.ink(rng, paper)
    lines = []
    for i in range(5):
        breadth = 2.0 if i % 2 == 0 else 1.0
        across, down = left + i * cell, top + i * cell
        ends = [(left, down), (left + 4 * cell, down)], [(across, top), (across, top + 4 * cell)]
        lines += [Line(points=list(points), breadth=breadth, color=pen) for points in ends]
    hand = stroke(rng, paper)
    written = [
        (int(digit), _cell_spot(rng, left, top, cell, i), hand)
        for i, digit in enumerate(cells)
        if digit != "."
    ]
    image = draw.digits(rng, paper, written, lines)
    question = choose(rng, _SUDOKU)
    key = sudoku.key(cells, solution)
    return _case("picture-sudoku", question, [image], sudoku.rows(solution), key)


def stroke(rng: Generator, paper: Sheet) -> Stroke:
    """A way of writing."""
    return Stroke(
        width=rng.uniform(0.45, 0.7),
        slant=rng.uniform(-0.05, 0.2),
        pen=rng.uniform(0.08, 0.15),
        color=draw.ink(rng, paper),
    )


def scene_key(paper: Sheet, spots: tuple[Spot, ...]) -> str:
    """The identity of a rendering: paper, places and sizes, without turn and noise."""
    places = ";".join(f"{at.x},{at.y},{at.radius}" for at in spots)
    return f"{paper.side},{paper.grey}:{places}"


def _key(*scenes: _Scene) -> str:
    return "picture:" + "|".join(scene_key(paper, spots) for paper, spots in scenes)


def _case(task: str, question: str, images: list[Image.Image], answer: str, key: str) -> Case:
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": question})
    return Case(task=task, messages=(user(content),), answer=answer, key=key)


def _scene(rng: Generator, radii: tuple[float, float], side: int | None = None) -> _Scene:
    """Paper, and one place on it."""
    paper = draw.sheet(rng, side)
    return paper, (draw.spot(rng, paper.side, *radii, reach=draw.NEAR),)


def _scattered(rng: Generator, number: int) -> _Scene:
    """Paper, and places that do not touch."""
    paper, spots = draw.sheet(rng), list[Spot]()
    while len(spots) < number:
        new = draw.spot(rng, paper.side, 0.08, 0.13)
        if all(hypot(new.x - s.x, new.y - s.y) > 1.1 * (new.radius + s.radius) + 2 for s in spots):
            spots.append(new)
    return paper, tuple(spots)


def _thing(
    rng: Generator, at: Spot, *, color: str | None = None, shape: str | None = None
) -> tuple[Thing, tuple[str, str]]:
    """A thing, and the names of its colour and shape; what is not given is drawn."""
    color = choose(rng, list(COLORS)) if color is None else color
    shape = choose(rng, SHAPES) if shape is None else shape
    return Thing(spot=at, shape=shape, color=draw.shade(rng, color)), (color, shape)


def _one(rng: Generator, held_out: bool) -> tuple[_Scene, Image.Image, tuple[str, str]]:
    scene = pick(lambda: _scene(rng, (0.14, 0.38)), _key, held_out=held_out)
    drawn, names = _thing(rng, scene[1][0])
    return scene, draw.shapes(rng, scene[0], [drawn]), names


def _pair(rng: Generator, names: tuple[str, ...]) -> tuple[str, str]:
    """Two names, the same one in half of all cases."""
    one = choose(rng, names)
    if rng.random() < 0.5:
        return one, one
    return one, choose(rng, [name for name in names if name != one])


def _two(
    task: str, question: str, rng: Generator, kinds: list[tuple[str, str]], held_out: bool
) -> Case:
    """The case of two pictures, each of one (colour, shape); what `task` asks for decides."""
    side = choose(rng, draw.SIDES)
    scenes = pick(
        lambda: (_scene(rng, (0.14, 0.38), side), _scene(rng, (0.14, 0.38), side)),
        lambda both: _key(*both),
        held_out=held_out,
    )
    images = [
        draw.shapes(rng, paper, [_thing(rng, at, color=name, shape=kind)[0]])
        for (paper, (at,)), (name, kind) in zip(scenes, kinds, strict=True)
    ]
    what = 1 if task == "picture-same-shape" else 0
    answer = "yes" if kinds[0][what] == kinds[1][what] else "no"
    return _case(task, question, images, answer, _key(*scenes))


def _cell_spot(rng: Generator, left: int, top: int, cell: int, i: int) -> Spot:
    """About the middle of a cell."""
    off_x, off_y = (int(n) for n in rng.integers(-1, 2, 2))
    return Spot(
        x=left + i % 4 * cell + cell // 2 + off_x,
        y=top + i // 4 * cell + cell // 2 + off_y,
        radius=round(cell * rng.uniform(0.35, 0.42)),
        turn=int(rng.integers(-6, 7)),
    )
