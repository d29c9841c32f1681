"""Questions about videos of four frames, one a second. Renderings are held out, as in pictures."""

from __future__ import annotations

from typing import Any

from numpy.random import Generator
from PIL import Image

from . import draw
from .case import Case, Clip, choose, pick, user
from .draw import COLORS, SHAPES, Sheet, Spot, Thing
from .pictures import scene_key

FRAMES = 4
_DIRECTION = ("Which way does the dot move?", "Where does the dot go?")
_FIRST = ("Which comes first, the {a} or the {b}?", "Which is first, {a} or {b}?")
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_Scene = tuple[Sheet, tuple[Spot, ...]]


def direction(rng: Generator, /, *, held_out: bool) -> Case:
    """A dot that moves left, right, up or down."""
    way = choose(rng, list(_STEPS))
    paper, spots = pick(lambda: _path(rng, way), _key, held_out=held_out)
    color = draw.shade(rng, choose(rng, list(COLORS)))
    frames = [
        draw.shapes(rng, paper, [Thing(spot=at, shape="circle", color=color)]) for at in spots
    ]
    return _case("video-direction", choose(rng, _DIRECTION), frames, way, _key((paper, spots)))


def first(rng: Generator, /, *, held_out: bool) -> Case:
    """One shape, then another: which came first?"""
    scene = pick(lambda: _two_places(rng), _key, held_out=held_out)
    paper, (start, end) = scene
    one, other = (SHAPES[i] for i in rng.permutation(len(SHAPES))[:2])
    things = [
        Thing(spot=at, shape=kind, color=draw.shade(rng, choose(rng, list(COLORS))))
        for at, kind in ((start, one), (end, other))
    ]
    change = int(rng.integers(1, FRAMES))
    frames = [draw.shapes(rng, paper, [things[i >= change]]) for i in range(FRAMES)]
    named = (one, other) if rng.random() < 0.5 else (other, one)
    question = choose(rng, _FIRST).format(a=named[0], b=named[1])
    return _case("video-first", question, frames, one, _key(scene))


def _case(task: str, question: str, frames: list[Image.Image], answer: str, key: str) -> Case:
    content: list[dict[str, Any]] = [
        {"type": "video", "video": Clip(frames=tuple(frames))},
        {"type": "text", "text": question},
    ]
    return Case(task=task, messages=(user(content),), answer=answer, key=key)


def _key(scene: _Scene) -> str:
    return f"video:{scene_key(*scene)}"


def _path(rng: Generator, way: str) -> _Scene:
    """The places of a dot that goes one way and stays on the paper."""
    paper = draw.sheet(rng)
    side, radius = paper.side, int(rng.integers(paper.side // 16, paper.side // 8))
    room = side - 2 * (radius + 2)
    step = int(rng.integers(side // 10, room // (FRAMES - 1) + 1))
    start = int(rng.integers(room - step * (FRAMES - 1) + 1))
    along = [start + step * i for i in range(FRAMES)]
    across = int(rng.integers(room + 1))
    dx, dy = _STEPS[way]
    places = along if dx + dy > 0 else along[::-1]
    spots = (
        Spot(
            x=radius + 2 + (place if dx else across),
            y=radius + 2 + (place if dy else across),
            radius=radius,
            turn=0,
        )
        for place in places
    )
    return paper, tuple(spots)


def _two_places(rng: Generator) -> _Scene:
    paper = draw.sheet(rng)
    return paper, tuple(draw.spot(rng, paper.side, 0.16, 0.34, reach=draw.NEAR) for _ in range(2))
