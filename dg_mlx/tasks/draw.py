"""Small RGB pictures of shapes and digits, drawn large and shrunk, with noise."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, pi, radians, sin

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from .case import choose

Points = list[tuple[float, float]]
Color = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {"red": 0, "orange": 30, "yellow": 57, "green": 120, "blue": 222, "purple": 285}
"""Names and hues in degrees."""
SIDES = (64, 72, 80, 88, 96)
NEAR = 0.4
"""How far a single thing is from the middle, as a share of the way to the edge."""
_SCALE = 4
_BREADTH = 0.35  # of a cross's arms, in radii


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The paper: its side in pixels, its grey, and the strength of the noise."""

    side: int
    grey: int
    noise: int

    @property
    def dark(self) -> bool:
        """Whether light colours show on it."""
        return self.grey < 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where something is: centre and radius in pixels, and its turn in degrees."""

    x: int
    y: int
    radius: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A shape of some colour at a spot."""

    spot: Spot
    shape: str
    color: Color


def sheet(rng: Generator, side: int | None = None) -> Sheet:
    """Dark or light paper."""
    grey = int(rng.integers(0, 70)) if rng.random() < 0.5 else int(rng.integers(175, 256))
    side = choose(rng, SIDES) if side is None else side
    return Sheet(side=side, grey=grey, noise=int(rng.integers(0, 11)))


def spot(rng: Generator, side: int, smallest: float, largest: float, *, reach: float = 1.0) -> Spot:
    """Within the paper; radii are shares of its side, `reach` of the way to its edge."""
    radius = int(rng.integers(round(smallest * side), round(largest * side) + 1))
    middle, room = side // 2, int(reach * (side // 2 - radius - 2))
    x, y = (middle + int(n) for n in rng.integers(-room, room + 1, 2))
    return Spot(x=x, y=y, radius=radius, turn=int(rng.integers(-12, 13)))


def shade(rng: Generator, name: str) -> Color:
    """One of the many shades that go by a colour's name."""
    hue = (COLORS[name] + rng.uniform(-5, 5)) / 360 % 1
    return _bytes(colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1), rng.uniform(0.85, 1)))


def ink(rng: Generator, paper: Sheet) -> Color:
    """A colour that stands out from the paper by its lightness."""
    value = rng.uniform(0.85, 1) if paper.dark else rng.uniform(0, 0.4)
    return _bytes(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.4), value))


def shapes(rng: Generator, paper: Sheet, things: Sequence[Thing]) -> Image.Image:
    """A picture of `things`."""
    image, draw = _blank(paper)
    for thing in things:
        for outline in _outlines(thing):
            draw.polygon([(x * _SCALE, y * _SCALE) for x, y in outline], fill=thing.color)
    return _finish(rng, paper, image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """How a digit is written: stretch and slant, and the pen's breadth in units of its height."""

    width: float
    slant: float
    pen: float
    color: Color


def digits(
    rng: Generator, paper: Sheet, written: Sequence[tuple[int, Spot, Stroke]], lines: Sequence[Line]
) -> Image.Image:
    """A picture of digits, within the spots' circles, over straight lines."""
    image, draw = _blank(paper)
    for line in lines:
        points = [(x * _SCALE, y * _SCALE) for x, y in line.points]
        draw.line(points, fill=line.color, width=round(line.breadth * _SCALE))
    for digit, at, stroke in written:
        for points in _written(digit, at, stroke):
            _pen(draw, points, stroke.pen * 2 * at.radius, stroke.color)
    return _finish(rng, paper, image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through points, in pixels."""

    points: Points
    breadth: float
    color: Color


def _bytes(rgb: tuple[float, float, float]) -> Color:
    red, green, blue = (round(255 * part) for part in rgb)
    return red, green, blue


def _blank(paper: Sheet) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    side = paper.side * _SCALE
    image = Image.new("RGB", (side, side), (paper.grey,) * 3)
    return image, ImageDraw.Draw(image)


def _finish(rng: Generator, paper: Sheet, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image.reduce(_SCALE), dtype=np.float32)
    noisy = pixels + paper.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


def _outlines(thing: Thing) -> list[Points]:
    """The polygons that make up a shape, in pixels."""
    at = thing.spot
    if thing.shape == "circle":
        outlines = [[(cos(pi * i / 32), sin(pi * i / 32)) for i in range(64)]]
    elif thing.shape == "square":
        outlines = [_box(0.82, 0.82)]
    elif thing.shape == "triangle":
        outlines = [_triangle(1.05)]
    else:
        assert thing.shape == "cross", thing.shape
        outlines = [_box(0.97, _BREADTH), _box(_BREADTH, 0.97)]
    return [[_turned(x, y, at) for x, y in outline] for outline in outlines]


def _box(half_width: float, half_height: float) -> Points:
    w, h = half_width, half_height
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


def _triangle(radius: float) -> Points:
    """Pointing up, a little lower than its centre so that the box around it is centred."""
    corners = (2 * pi * i / 3 for i in range(3))
    return [(radius * sin(angle), 0.15 - radius * cos(angle)) for angle in corners]


def _turned(x: float, y: float, at: Spot) -> tuple[float, float]:
    c, s = cos(radians(at.turn)) * at.radius, sin(radians(at.turn)) * at.radius
    return at.x + c * x - s * y, at.y + s * x + c * y


def _arc(x: float, y: float, rx: float, ry: float, span: tuple[int, int]) -> Points:
    """Points of an ellipse; 0 degrees is right, 90 is down."""
    first, last = span
    steps = max(2, abs(last - first) // 10)
    angles = (radians(first + (last - first) * i / steps) for i in range(steps + 1))
    return [(x + rx * cos(angle), y + ry * sin(angle)) for angle in angles]


@cache
def _glyph(digit: int) -> tuple[Points, ...]:
    """The strokes of a digit in a box from (0, 0), top left, to (1, 1)."""
    if digit == 9:
        return tuple([(1 - x, 1 - y) for x, y in points] for points in _glyph(6))
    strokes: dict[int, tuple[Points, ...]] = {
        0: (_arc(0.5, 0.5, 0.5, 0.5, (0, 360)),),
        1: ([(0.15, 0.25), (0.55, 0), (0.55, 1)],),
        2: ([*_arc(0.5, 0.3, 0.48, 0.3, (190, 395)), (0, 1), (1, 1)],),
        3: (
            [*_arc(0.45, 0.25, 0.43, 0.25, (205, 450)), *_arc(0.45, 0.74, 0.52, 0.26, (270, 515))],
        ),
        4: ([(0.75, 1), (0.75, 0), (0, 0.68), (1, 0.68)],),
        5: ([(0.9, 0), (0.15, 0), (0.1, 0.45), *_arc(0.45, 0.68, 0.52, 0.32, (225, 510))],),
        6: (_arc(0.85, 0.68, 0.82, 0.68, (270, 180)) + _arc(0.5, 0.69, 0.47, 0.31, (180, 540)),),
        7: ([(0, 0), (1, 0), (0.4, 1)],),
        8: (
            _arc(0.5, 0.24, 0.4, 0.24, (0, 360)),
            _arc(0.5, 0.74, 0.5, 0.26, (0, 360)),
        ),
    }
    return strokes[digit]


def _written(digit: int, at: Spot, stroke: Stroke) -> list[Points]:
    """A digit's strokes in pixels."""
    strokes, size = [], 2 * (0.9 - stroke.pen)  # leaves room for the pen and the turn
    for points in _glyph(digit):
        centred = [((x - 0.5) * size * stroke.width, (y - 0.5) * size) for x, y in points]
        strokes.append([_turned(x - stroke.slant * y, y, at) for x, y in centred])
    return strokes


def _pen(draw: ImageDraw.ImageDraw, points: Points, breadth: float, color: Color) -> None:
    """A line with round ends."""
    large = [(x * _SCALE, y * _SCALE) for x, y in points]
    draw.line(large, fill=color, width=round(breadth * _SCALE), joint="curve")
    for x, y in (large[0], large[-1]):
        draw.circle((x, y), breadth * _SCALE / 2, fill=color)
