"""Streets and what stands in them: cameras with their own view and eyesight, and things that hide people.

In: a seed and a camera's number, or the kind of an obstacle. Out: the camera's backdrop (the same in every photo it
takes, seen through a window that moves), its way of seeing (`Camera.develop`), and obstacles as `Cutout`s to lay over
a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import pi
from random import Random
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from hpnet.data.cutouts import CLOTH_COLOURS, Cloth, Cutout, Place, Point, box, ellipse, shade, varied

# A street: the wall behind, the ground, and what stands about. No two of the first eight cameras share one.
_STREETS: Final[tuple[tuple[Cloth, Cloth, tuple[str, ...]], ...]] = (
    (Cloth((158, 84, 66), (196, 178, 160), "bricks", 22.0), Cloth((150, 148, 142), (112, 110, 106), "slabs", 9.0),
     ("window", "bin", "poster")),
    (Cloth((58, 104, 52), (36, 74, 38), "leaves", 9.0), Cloth((122, 158, 84), (98, 136, 66), "leaves", 14.0),
     ("bush", "pole", "bush")),
    (Cloth((168, 200, 222)), Cloth((166, 132, 96), (122, 94, 66), "planks", 20.0), ("railing", "pole", "railing")),
    (Cloth((206, 190, 160), (168, 150, 124), "slabs", 4.0), Cloth((208, 196, 180), (172, 160, 146), "checks", 10.0),
     ("shop", "poster", "bin")),
    (Cloth((124, 126, 130), (110, 112, 118), "camouflage", 4.0), Cloth((74, 76, 82), (84, 86, 90), "leaves", 20.0),
     ("poster", "bollard", "pole")),
    (Cloth((196, 220, 214), (150, 180, 176), "slabs", 20.0), Cloth((128, 132, 142), (220, 190, 60), "plain", 8.0),
     ("poster", "bollard", "window")),
    (Cloth((132, 98, 66), (98, 70, 46), "planks", 14.0), Cloth((172, 160, 140), (146, 134, 116), "leaves", 24.0),
     ("bush", "bin", "window")),
    (Cloth((88, 112, 140), (126, 154, 180), "pinstripes", 6.0), Cloth((188, 186, 190), (140, 138, 146), "tartan", 7.0),
     ("window", "bollard", "shop")),
)  # fmt: skip
_GREENS: Final = ((44, 92, 40), (70, 128, 56), (98, 150, 70), (36, 74, 50), (128, 152, 72))
_GLASS: Final = (70, 90, 106)
PANORAMA: Final = 3  # a backdrop is this many frames wide


@dataclass(frozen=True)
class Camera:
    """A camera: where it hangs and how it sees. All of it stays the same from photo to photo."""

    seed: int
    number: int
    heading: float  # which way people mostly walk before it; half of them walk the other way
    light: float
    gains: tuple[float, float, float]
    gamma: float
    contrast: float
    blur: float  # pixels of a frame 128 high
    noise: float  # standard deviation, grey levels
    zoom: float
    lean: float  # how far off the middle people stand, frame widths
    horizon: float

    @staticmethod
    def mounted(seed: int, number: int) -> Camera:
        """The camera of this number."""
        chance = Random(f"camera {seed} {number}")
        return Camera(
            seed=seed,
            number=number,
            heading=chance.uniform(0, 2 * pi),
            light=chance.choice((-1.0, 1.0)),
            gains=(chance.uniform(0.85, 1.15), chance.uniform(0.9, 1.1), chance.uniform(0.82, 1.18)),
            gamma=chance.uniform(0.75, 1.35),
            contrast=chance.uniform(0.75, 1.1),
            blur=chance.uniform(0.0, 0.8),
            noise=chance.uniform(2, 9),
            zoom=chance.uniform(0.82, 0.93),
            lean=chance.uniform(-0.04, 0.04),
            horizon=chance.uniform(0.5, 0.75),
        )

    def view(self, canvas: tuple[int, int], chance: Random) -> Image.Image:
        """A window of (height, width) pixels onto the camera's backdrop, at a place by chance."""
        wide = _backdrop(self, canvas)
        left = chance.randint(0, wide.width - canvas[1])
        return wide.crop((left, 0, left + canvas[1], canvas[0]))

    def develop(self, photo: Image.Image, chance: Random) -> Image.Image:
        """The photo as this camera sees it: its blur, exposure, colour cast and noise."""
        exposure = chance.uniform(0.9, 1.1)
        levels = np.linspace(0, 1, 256) ** self.gamma
        levels = exposure * (0.5 + self.contrast * (levels - 0.5))
        table = np.concatenate([np.clip(255 * gain * levels, 0, 255) for gain in self.gains])
        seen = photo.filter(ImageFilter.GaussianBlur(self.blur * photo.height / 128)).point(table.astype(int).tolist())
        grain = np.random.default_rng(chance.getrandbits(64)).standard_normal(
            (photo.height, photo.width, 3), np.float32
        )
        return Image.fromarray(np.clip(np.asarray(seen) + self.noise * grain, 0, 255).astype(np.uint8))


@lru_cache(maxsize=64)
def _backdrop(camera: Camera, canvas: tuple[int, int]) -> Image.Image:
    chance = Random(f"backdrop {camera.seed} {camera.number}")
    height, width = canvas[0], PANORAMA * canvas[1]
    sheet = Cutout((height, width), Place(0.0, 0.0, float(height)))
    streets = Random(f"streets {camera.seed}").sample(_STREETS, len(_STREETS))
    wall, ground, things = streets[camera.number % len(streets)]
    end, edge = width / height, camera.horizon
    sheet.fill(box(0.0, 0.0, end, edge), _recoloured(chance, wall))
    sheet.fill(box(0.0, edge, end, 1.0), _recoloured(chance, ground))
    sheet.fill(box(0.0, edge - 0.02, end, edge + 0.01), shade(ground.colour, 0.6))
    for step in range(9):
        _CLUTTER[things[step % 3]](chance, sheet, chance.uniform(0, end), edge)
    # Light and dirt are never even.
    small = np.random.default_rng(chance.getrandbits(64)).uniform(0, 255, (8, 20)).astype(np.uint8)
    mottle = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    uneven = np.asarray(sheet.paint, np.float32) * (0.85 + 0.3 * mottle[..., None] / 255)
    return Image.fromarray(np.clip(uneven, 0, 255).astype(np.uint8))


def _recoloured(chance: Random, cloth: Cloth) -> Cloth:
    return Cloth(varied(chance, cloth.colour, 18), varied(chance, cloth.second, 18), cloth.pattern, cloth.repeats)


# Clutter: each draws one thing at x on a backdrop whose ground begins at y = edge; units are the frame's height.


def _window(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    top, wide = chance.uniform(0.05, 0.15), chance.uniform(0.1, 0.18)
    sheet.fill(box(x - 0.02, top - 0.02, x + wide + 0.02, edge * 0.65), varied(chance, (220, 214, 200), 25))
    sheet.fill(box(x, top, x + wide, edge * 0.62), varied(chance, _GLASS, 20))
    sheet.line([(x + wide / 2, top), (x + wide / 2, edge * 0.62)], (230, 226, 216), 0.012)


def _shop(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    wide = chance.uniform(0.3, 0.5)
    sheet.fill(box(x, 0.2, x + wide, edge - 0.04), varied(chance, (60, 66, 78), 20))
    sheet.fill(box(x - 0.02, 0.1, x + wide + 0.02, 0.22), Cloth.chosen(chance))
    for _ in range(4):
        goods = x + chance.uniform(0.02, wide - 0.1)
        sheet.fill(box(goods, chance.uniform(0.3, 0.45), goods + 0.08, edge - 0.05), Cloth.chosen(chance))


def _poster(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    top, wide = chance.uniform(0.05, 0.2), chance.uniform(0.12, 0.25)
    sheet.fill(box(x, top, x + wide, top + 1.3 * wide), Cloth.chosen(chance))
    sheet.fill(
        ellipse((x + wide / 2, min(top + 0.6 * wide, edge)), 0.3 * wide, 0.35 * wide), chance.choice(CLOTH_COLOURS)
    )


def _bin(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    colour = varied(chance, chance.choice(((52, 92, 60), (60, 64, 70), (38, 70, 120), (190, 150, 40))))
    sheet.fill(box(x, edge - 0.14, x + 0.12, edge + 0.06), colour)
    sheet.fill(box(x - 0.01, edge - 0.17, x + 0.13, edge - 0.13), shade(colour, 0.7))


def _bush(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    for _ in range(40):
        leaf = (x + chance.gauss(0, 0.08), edge - abs(chance.gauss(0, 0.1)) + 0.04)
        sheet.fill(ellipse(leaf, 0.04, 0.03), varied(chance, chance.choice(_GREENS)), seam=False)


def _pole(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    sheet.fill(box(x, -0.1, x + chance.uniform(0.02, 0.05), edge + 0.05), varied(chance, (96, 92, 88), 30))


def _bollard(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    colours = varied(chance, chance.choice(((200, 60, 50), (210, 180, 60), (90, 90, 96))))
    sheet.fill(box(x, edge - 0.12, x + 0.06, edge + 0.08), Cloth(colours, (235, 235, 230), "stripes", 14.0))


def _railing(chance: Random, sheet: Cutout, x: float, edge: float) -> None:
    colour = varied(chance, (70, 84, 92), 20)
    for bar in range(12):
        sheet.fill(box(x + 0.05 * bar, edge - 0.3, x + 0.05 * bar + 0.012, edge), colour, seam=False)
    for top in (edge - 0.3, edge - 0.06):
        sheet.fill(box(x - 0.02, top, x + 0.6, top + 0.02), colour, seam=False)


_CLUTTER: Final[dict[str, Callable[[Random, Cutout, float, float], None]]] = {
    "window": _window, "shop": _shop, "poster": _poster, "bin": _bin, "bush": _bush, "pole": _pole,
    "bollard": _bollard, "railing": _railing,
}  # fmt: skip


def obstacle(kind: str, chance: Random, place: Place, canvas: tuple[int, int]) -> Cutout:
    """Something that stands before a person, a different one each time, and hides 30 to 60 % of the body.

    Args:
        kind: a key of `OBSTACLES`.
        chance: decides its shape, colours, and which end or side of the person it hides.
        place: where the person stands.
        canvas: (height, width) in pixels.
    """
    sheet = Cutout(canvas, place)
    OBSTACLES[kind](chance, sheet)
    return sheet


# Obstacles: each draws one thing before a body that reaches from y = 0 to 1 and about 0.15 to either side of x = 0.


def _car(chance: Random, sheet: Cutout) -> None:
    bonnet, nose = chance.uniform(0.42, 0.62), chance.choice((-1, 1))
    shift, paint = chance.uniform(-0.5, 0.6), Cloth.chosen(chance, plain=0.8)

    def mirrored(*outline: Point) -> list[Point]:
        return [(nose * (x + shift), y) for x, y in outline]

    roof = bonnet - 0.24
    glass = varied(chance, _GLASS, 25)
    sheet.fill(mirrored((0.35, bonnet), (0.65, roof), (1.6, roof), (1.6, bonnet)), shade(paint.colour, 0.9))
    sheet.fill(mirrored((0.43, bonnet), (0.68, roof + 0.04), (1.1, roof + 0.04), (1.1, bonnet)), glass)
    sheet.fill(mirrored((-0.65, bonnet + 0.12), (-0.6, bonnet + 0.03), (0.35, bonnet), (2.0, bonnet), (2.0, 1.06),
                        (-0.65, 1.06)), paint)  # fmt: skip
    sheet.line(mirrored((-0.6, bonnet + 0.14), (2.0, bonnet + 0.14)), shade(paint.colour, 0.7), 0.02)
    for seam in (0.3, 1.0):
        sheet.line(mirrored((seam, bonnet), (seam, 1.0)), shade(paint.colour, 0.55), 0.01)
    sheet.line(mirrored((0.4, bonnet + 0.08), (0.52, bonnet + 0.08)), (50, 50, 54), 0.03)
    for wheel in (-0.25, 1.3):
        for radius, colour in ((0.19, (24, 24, 28)), (0.11, (150, 152, 158))):
            sheet.fill(ellipse((nose * (wheel + shift), 1.0), radius, radius), colour)
    sheet.fill(ellipse((nose * (-0.58 + shift), bonnet + 0.17), 0.05, 0.04), (248, 236, 180))


def _plant(chance: Random, sheet: Cutout) -> None:
    left, top, right, bottom = _region(chance, ("below", "below", "left", "right", "above"))
    greens = [varied(chance, colour, 20) for colour in _GREENS]
    flower = chance.choice(CLOTH_COLOURS)
    flowers, size = chance.choice((0.0, 0.0, 0.15, 0.3)), chance.uniform(0.03, 0.07)
    sheet.fill(box(left, top, right, bottom), Cloth(greens[0], greens[1], "leaves", 20.0), seam=False)
    for _ in range(90):
        leaf = (chance.uniform(left, right), chance.uniform(top, bottom))
        colour = flower if chance.random() < flowers else chance.choice(greens)
        tall = chance.uniform(0.6, 1.6)
        sheet.fill(ellipse(leaf, size / tall, size * tall), varied(chance, colour, 14), seam=False)


def _wall(chance: Random, sheet: Cutout) -> None:
    left, top, right, bottom = _region(chance, ("below", "left", "right"))
    cloth = Cloth.chosen(chance)
    if chance.random() < 0.6:
        stone = chance.choice([wall for wall, _, _ in _STREETS])
        cloth = Cloth(
            varied(chance, stone.colour, 50), varied(chance, stone.second, 50), stone.pattern, chance.uniform(9, 18)
        )
    sheet.fill(box(left, top, right, bottom), cloth)
    if chance.random() < 0.7:
        x, y = chance.uniform(left, right - 0.1), chance.uniform(top, bottom - 0.3)
        sheet.fill(box(x, y, x + chance.uniform(0.08, 0.25), y + chance.uniform(0.1, 0.25)), Cloth.chosen(chance))
    sheet.fill(box(left, top - 0.01, right, top + 0.025), shade(cloth.colour, 0.7))


def _fence(chance: Random, sheet: Cutout) -> None:
    top, period = chance.uniform(0.38, 0.6), chance.uniform(0.06, 0.12)
    board, cloth = period * chance.uniform(0.75, 0.92), Cloth.chosen(chance, plain=0.7)
    start, point = chance.uniform(0, period) - 0.8, chance.choice((0.0, 0.03))
    for bar in (top + 0.08, 0.9):
        sheet.fill(box(-1.0, bar, 1.0, bar + 0.05), shade(cloth.colour, 0.75))
    for step in range(int(1.6 / period) + 1):
        x = start + step * period
        sheet.fill([(x, top), (x + board / 2, top - point), (x + board, top), (x + board, 1.1), (x, 1.1)], cloth)


def _boxes(chance: Random, sheet: Cutout) -> None:
    top, floor = chance.uniform(0.4, 0.62), 1.06
    while floor > top + 0.03:
        tall = min(chance.uniform(0.12, 0.28), floor - top)
        x = chance.uniform(-0.45, -0.25)
        while x < chance.uniform(0.2, 0.4):
            wide = chance.uniform(0.2, 0.4)
            cardboard = Cloth(varied(chance, (186, 146, 100), 22))
            cloth = cardboard if chance.random() < 0.4 else Cloth.chosen(chance, plain=0.6)
            sheet.fill(box(x, floor - tall, x + wide, floor), cloth)
            sheet.fill(box(x + wide * 0.42, floor - tall, x + wide * 0.55, floor), shade(cloth.colour, 0.8), seam=False)
            x += wide
        floor -= tall


def _umbrella(chance: Random, sheet: Cutout) -> None:
    brim, middle, cloth = chance.uniform(0.28, 0.45), chance.uniform(-0.1, 0.1), Cloth.chosen(chance, plain=0.3)
    wide = chance.uniform(0.3, 0.42)
    sheet.fill(box(middle - 0.008, brim, middle + 0.008, brim + 0.3), (60, 50, 46))
    dome = [point for point in ellipse((middle, brim), wide, brim + 0.12) if point[1] <= brim + 1e-6]
    sheet.fill(dome, cloth)
    for rib in (-0.5, 0.0, 0.5):
        sheet.line([(middle, -0.12), (middle + rib * wide, brim)], shade(cloth.colour, 0.6), 0.008)


def _region(chance: Random, sides: tuple[str, ...]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of something that hides one end or side of a body."""
    edge = chance.uniform(-0.04, 0.04)
    return {
        "below": (-0.8, chance.uniform(0.38, 0.64), 0.8, 1.1),
        "above": (-0.8, -0.2, 0.8, chance.uniform(0.32, 0.55)),
        "left": (-0.8, chance.uniform(-0.2, 0.1), edge, 1.1),
        "right": (edge, chance.uniform(-0.2, 0.1), 0.8, 1.1),
    }[chance.choice(sides)]


OBSTACLES: Final[dict[str, Callable[[Random, Cutout], None]]] = {
    "car": _car, "plant": _plant, "wall": _wall, "fence": _fence, "boxes": _boxes, "umbrella": _umbrella,
}  # fmt: skip
