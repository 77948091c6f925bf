"""Coloured paper: cloth with patterns, and shapes that are filled with it and cut out.

In: outlines in body units, cloths, part labels. Out: `Cutout`, a picture with its shape and exact part labels, which
`dolls` makes people of and `scenes` makes streets, cars and fences of.

Body units: y = 0 at a person's crown and 1 at the soles, x = 0 on the body's axis, growing to the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import atan2, cos, pi, sin
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from hpnet.parts import BACKGROUND

Colour = tuple[int, int, int]
Point = tuple[float, float]
_Grid = NDArray[np.float32]

CLOTH_COLOURS: Final[tuple[Colour, ...]] = (
    (238, 236, 230), (176, 180, 184), (92, 96, 104), (34, 34, 40), (30, 44, 92), (38, 84, 190), (120, 178, 226),
    (24, 132, 134), (40, 138, 66), (112, 116, 52), (216, 170, 40), (232, 116, 34), (204, 36, 44), (116, 26, 48),
    (232, 140, 170), (128, 68, 160), (116, 74, 44), (206, 184, 146),
)  # fmt: skip

# Where a pattern's second colour lies, in repeats to the right (u) and down (v).
PATTERNS: Final[dict[str, Callable[[_Grid, _Grid], NDArray[np.bool_]]]] = {
    "stripes": lambda u, v: v % 1 < 0.5,
    "pinstripes": lambda u, v: u % 1 < 0.4,
    "checks": lambda u, v: (u % 2 < 1) ^ (v % 2 < 1),
    "tartan": lambda u, v: (u % 1 < 0.3) | (v % 1 < 0.3),
    "dots": lambda u, v: np.hypot((u + np.floor(v) % 2 / 2) % 1 - 0.5, v % 1 - 0.5) < 0.3,
    "diagonal": lambda u, v: (u + v) % 1 < 0.5,
    "camouflage": lambda u, v: np.sin(4 * u + 2 * np.sin(2 * v)) + np.sin(3.1 * v + np.sin(2.3 * u)) > 0.3,
    "bricks": lambda u, v: ((u / 2 + np.floor(v) % 2 / 2) % 1 < 0.07) | (v % 1 < 0.14),
    "slabs": lambda u, v: (u % 1 < 0.05) | (v % 1 < 0.08),
    "planks": lambda u, v: (v % 1 < 0.12) | ((u / 4 + np.floor(v) * 0.37) % 1 < 0.03),
    "leaves": lambda u, v: np.sin(5 * u + 2 * np.sin(4 * v)) * np.sin(4 * v + 2 * np.sin(3 * u)) > 0.1,
}
WOVEN: Final = ("stripes", "pinstripes", "checks", "tartan", "dots", "diagonal", "camouflage")  # those of clothes


@dataclass(frozen=True)
class Cloth:
    """What a surface is covered with: two colours and a pattern that repeats so often per body height."""

    colour: Colour
    second: Colour = (0, 0, 0)
    pattern: str = "plain"
    repeats: float = 12.0

    @staticmethod
    def chosen(chance: Random, plain: float = 0.4) -> Cloth:
        """A cloth by chance, plain with the probability given; its colours always differ clearly."""
        colour = chance.choice(CLOTH_COLOURS)
        others = [other for other in CLOTH_COLOURS if sum(abs(a - b) for a, b in zip(other, colour, strict=True)) > 180]
        pattern = "plain" if chance.random() < plain else chance.choice(WOVEN)
        return Cloth(varied(chance, colour), varied(chance, chance.choice(others)), pattern, chance.uniform(9, 17))


@dataclass(frozen=True)
class Place:
    """Where a body stands on a canvas, in pixels: its axis, its crown, and its height."""

    x: float
    top: float
    height: float

    def pixels(self, outline: Sequence[Point]) -> list[Point]:
        """Body units to pixels."""
        return [(self.x + x * self.height, self.top + y * self.height) for x, y in outline]


class Cutout:
    """Painted paper, cut out: three pictures of the canvas' size, drawn on in body units of its place.

    Attributes:
        paint: RGB.
        shape: 255 where there is paper, 0 elsewhere.
        labels: the part map's value of each pixel of the paper.
    """

    def __init__(self, canvas: tuple[int, int], place: Place) -> None:
        """Nothing yet, on a canvas of (height, width) pixels."""
        self.place = place
        size = (canvas[1], canvas[0])
        self.paint, self.shape, self.labels = (Image.new(mode, size) for mode in ("RGB", "L", "L"))
        self._pens = [ImageDraw.Draw(image) for image in (self.paint, self.shape, self.labels)]
        self._patterns: dict[Cloth, Image.Image] = {}

    def fill(self, outline: Sequence[Point], cloth: Cloth | Colour, label: int = BACKGROUND, seam: bool = True) -> None:
        """Cover a polygon; a seam is a thin line in a darker shade, which keeps an arm apart from its torso."""
        cloth = cloth if isinstance(cloth, Cloth) else Cloth(cloth)
        points = self.place.pixels(outline)
        pen, shape, labels = self._pens
        pen.polygon(points, fill=cloth.colour)
        if cloth.pattern != "plain":
            mask = Image.new("L", self.paint.size)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            self.paint.paste(cloth.second, mask=ImageChops.darker(mask, self._pattern(cloth)))
        if seam:
            pen.line([*points, points[0]], fill=shade(cloth.colour, 0.6))
        shape.polygon(points, fill=255)
        labels.polygon(points, fill=label)

    def line(self, outline: Sequence[Point], colour: Colour, width: float) -> None:
        """Paint a line on paper that lies there already; width in body units."""
        self._pens[0].line(self.place.pixels(outline), fill=colour, width=max(1, round(width * self.place.height)))

    def shaded(self, light: float) -> Cutout:
        """Round the paper's edges by light and shadow; light is -1 (from the left) .. 1 (from the right)."""
        reach = max(1, round(0.02 * self.place.height))
        relief = np.asarray(self.shape.filter(ImageFilter.BoxBlur(reach)), np.float32) / 255
        slope = np.roll(relief, reach, 1) - np.roll(relief, -reach, 1)
        factor = 1 - 0.18 * (1 - relief) * 2 + 0.3 * light * slope
        paint = np.asarray(self.paint, np.float32) * factor[..., None]
        self.paint = Image.fromarray(np.clip(paint, 0, 255).astype(np.uint8))
        return self

    def _pattern(self, cloth: Cloth) -> Image.Image:
        if cloth not in self._patterns:
            width, height = self.paint.size
            unit = self.place.height / cloth.repeats
            u, v = np.meshgrid(
                (np.arange(width, dtype=np.float32) - self.place.x) / unit + 0.25,
                (np.arange(height, dtype=np.float32) - self.place.top) / unit,
            )
            self._patterns[cloth] = Image.fromarray(PATTERNS[cloth.pattern](u, v).astype(np.uint8) * 255)
        return self._patterns[cloth]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor below 1) or lighter."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def varied(chance: Random, colour: Colour, by: int = 12) -> Colour:
    """The colour, changed a little by chance."""
    red, green, blue = (min(255, max(0, value + chance.randint(-by, by))) for value in colour)
    return red, green, blue


def between(start: Sequence[float], end: Sequence[float], share: float) -> Point:
    """The point that far on the way from start (0) to end (1); a third coordinate is left out."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle's outline."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse(centre: Sequence[float], across: float, down: float) -> list[Point]:
    """An ellipse's outline, by its centre and half axes."""
    turns = [2 * pi * step / 20 for step in range(20)]
    return [(centre[0] + across * cos(turn), centre[1] + down * sin(turn)) for turn in turns]


def capsule(start: Sequence[float], end: Sequence[float], start_radius: float, end_radius: float) -> list[Point]:
    """A limb: two half circles and the straight sides between them."""
    along = atan2(end[1] - start[1], end[0] - start[0])
    outline = []
    for centre, radius, first in ((start, start_radius, along + pi / 2), (end, end_radius, along - pi / 2)):
        turns = [first + pi * step / 8 for step in range(9)]
        outline += [(centre[0] + radius * cos(turn), centre[1] + radius * sin(turn)) for turn in turns]
    return outline
