"""What comes between a person and the camera: people and things cut out of training photos, or the box's own edge.

In: training photos with part maps, a `Random`, and the body that is to be hidden. Out: `Cover`, a painted shape and the
side it comes in from; `slide` moves it over the photo until it hides as much of the body as asked for. `occlusion`
makes a test set of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hpnet.data.parsing import connected
from hpnet.data.photos import PhotoError, read_part_map, read_photo
from hpnet.data.reid import Person
from hpnet.parts import BACKGROUND, PARTS, Part

Kind = Literal["person", "object", "frame"]
Side = Literal["left", "right", "above", "below"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SMALLEST_PART: Final = 1 / 128  # of the photo's pixels, as on drawn people: 64 of 128 x 64, a quarter of a small head
# A part map with less is torn: of the person's pixels so many hang together, and so many are legs.
_ONE_PIECE: Final = 0.95
_LEGS: Final = 0.25
_PATCHES: Final = (0.5, 0.44, 0.375, 0.3)  # side of a square of background, photo widths; the largest there is wins
_ENLARGED: Final = (1.5, 2.5)  # how much larger a near thing shows such a patch
_FINER: Final = 4  # shapes are drawn so many times finer, then averaged
_OPAQUE: Final = 128  # of 255: from here on a pixel of a cover hides what is behind it

# A car from the side, metres from its nose and from its roof down.
_CAR: Final = (
    (0.0, 1.0), (0.06, 0.72), (1.1, 0.52), (1.75, 0.04), (3.1, 0.0), (3.85, 0.46), (4.25, 0.52), (4.3, 1.25),
    (0.0, 1.25),
)  # fmt: skip
_CAR_WINDOWS: Final = ((1.35, 0.48), (1.84, 0.12), (3.04, 0.09), (3.6, 0.46))
_CAR_WHEELS: Final = (0.85, 3.4)
_CAR_LENGTH: Final = 4.3
# In photo heights: a person of 1.7 m fills nine tenths of a photo, a nearer thing is larger.
_METRE: Final = (0.52, 0.68)


@dataclass(frozen=True)
class Cover:
    """Something that can be slid over a photo.

    Attributes:
        paint: RGB.
        shape: of the same size, 255 where it is opaque, 0 where it is not there.
        side: where it comes in from.
        across: pixels from the photo's left edge (from above and below) or top edge (from left and right).
        title: what it is, in a word.
        source: the training photo it was cut from, relative to the data set; "" for a cut of the frame.
        box: the part of that photo: left, top, right, bottom.
    """

    paint: Image.Image
    shape: Image.Image
    side: Side
    across: int
    title: str
    source: str = ""
    box: tuple[int, int, int, int] | None = None

    def corner(self, step: int, size: tuple[int, int]) -> tuple[int, int]:
        """Left and top after it has moved in by so many pixels, on a photo of (height, width)."""
        return {
            "left": (step - self.shape.width, self.across),
            "right": (size[1] - step, self.across),
            "above": (self.across, step - self.shape.height),
            "below": (self.across, size[0] - step),
        }[self.side]

    def over(self, corner: tuple[int, int], size: tuple[int, int]) -> Bool[NDArray[Any], "H W"]:
        """The pixels of a photo that it hides from there."""
        canvas = Image.new("L", (size[1], size[0]))
        canvas.paste(self.shape, corner)
        hidden: NDArray[np.bool_] = np.asarray(canvas) >= _OPAQUE
        return hidden


def slide(cover: Cover, body: Bool[NDArray[Any], "H W"], share: float) -> tuple[int, int] | None:
    """Move a cover in, pixel by pixel, until it hides that share of the body; None if it never does.

    Returns:
        Left and top of the cover.
    """
    height, width = body.shape
    shape = np.asarray(cover.shape) >= _OPAQUE
    wanted = share * np.count_nonzero(body)
    way = width + shape.shape[1] if cover.side in ("left", "right") else height + shape.shape[0]
    for step in range(1, way):
        left, top = cover.corner(step, body.shape)
        behind = body[max(0, top) : top + shape.shape[0], max(0, left) : left + shape.shape[1]]
        before = shape[max(0, -top) : height - top, max(0, -left) : width - left]
        if np.count_nonzero(behind & before) >= wanted:
            return left, top
    return None


@dataclass
class Donors:
    """Training photos to cut from, by camera, so that light and place fit the photo that is covered.

    Attributes:
        people: training photos that have a part map.
        root: the folder that holds the splits.
        part_maps: the folder that mirrors it.
        failures: photos that turned out to be unusable, and why.
    """

    people: Sequence[Person]
    root: Path
    part_maps: Path
    failures: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_camera: dict[int | str | None, list[Person]] = {}
        for person in self.people:
            self._by_camera.setdefault(person.camera, []).append(person)

    def cut(
        self, kind: Kind, chance: Random, camera: int | str | None, body: Bool[NDArray[Any], "H W"]
    ) -> Cover | None:
        """A cover by chance, in the size that fits a body; None if the photo that was drawn does not give one.

        Args:
            kind: one of `KINDS`.
            chance: decides everything.
            camera: who took the photo that is to be covered; donors are sought there, or everywhere if it has none.
            body: (H, W) where the person is.
        """
        if kind == "frame":
            return _frame(chance, body.shape)
        person = chance.choice(self._by_camera.get(camera) or self.people)
        try:
            photo = read_photo(person.path)
            labels = read_part_map(
                map_of(person.path, self.root, self.part_maps), (photo.shape[1], photo.shape[2])
            ).numpy()
        except PhotoError as error:
            self.failures[person.path] = str(error)
            return None
        picture = Image.fromarray(photo.permute(1, 2, 0).numpy())
        name = person.path.relative_to(self.root).as_posix()
        cover = _person if kind == "person" else _thing
        return cover(chance, picture, labels, name, body)


def map_of(photo: Path, root: Path, part_maps: Path) -> Path:
    """Where a photo's part map lies in a folder that mirrors the data set."""
    return part_maps / photo.relative_to(root).with_suffix(".png")


def _frame(chance: Random, size: tuple[int, ...]) -> Cover:
    """All that lies beyond one edge of a box that is too small."""
    side = chance.choice(get_args(Side))
    solid = Image.new("L", (size[1], size[0]), 255)
    return Cover(Image.new("RGB", solid.size), solid, side, 0, "cut")


def _person(
    chance: Random,
    picture: Image.Image,
    labels: UInt8[NDArray[Any], "h w"],
    name: str,
    body: Bool[NDArray[Any], "H W"],
) -> Cover | None:
    """Somebody as large as the person behind or larger: from a side, standing beside; or from below, much nearer."""
    if not _whole(labels):
        return None
    mask = labels != BACKGROUND
    shape = Image.fromarray(mask.astype(np.uint8) * 255)
    box = shape.getbbox()
    assert box is not None
    left, top, right, bottom = Image.fromarray(body).getbbox() or (0, 0, 0, 0)
    side: Side = chance.choice(("left", "right", "below"))
    tall = round((bottom - top) * (chance.uniform(1.2, 1.6) if side == "below" else chance.uniform(1.0, 1.35)))
    size = (max(1, round((box[2] - box[0]) * tall / (box[3] - box[1]))), max(1, tall))
    if side == "below":
        across = round((left + right) / 2 - size[0] / 2 + chance.uniform(-0.15, 0.15) * body.shape[1])
    else:
        across = bottom + round(chance.uniform(0.0, 0.12) * body.shape[0]) - size[1]
    paint = picture.resize(size, Image.Resampling.BICUBIC, box=box)
    return Cover(paint, shape.resize(size, Image.Resampling.BILINEAR, box=box), side, across, "person", name, box)


def _whole(labels: UInt8[NDArray[Any], "h w"]) -> bool:
    """Whether a part map shows somebody with all parts, in one piece."""
    counts = np.bincount(labels.ravel(), minlength=1 + len(PARTS))[1:]
    legs = counts[Part.UPPER_LEGS] + counts[Part.LOWER_LEGS]
    if counts.min() < SMALLEST_PART * labels.size or legs < _LEGS * counts.sum():
        return False
    largest = np.bincount(connected(labels != BACKGROUND).ravel())[1:].max()
    return bool(largest >= _ONE_PIECE * counts.sum())


def _thing(
    chance: Random,
    picture: Image.Image,
    labels: UInt8[NDArray[Any], "h w"],
    name: str,
    body: Bool[NDArray[Any], "H W"],
) -> Cover | None:
    """A vehicle, plant, wall or post covered with a piece of background."""
    box = _background(chance, labels != BACKGROUND)
    if box is None:
        return None
    title = chance.choice(tuple(_SHAPES))
    sides, draw = _SHAPES[title]
    side = chance.choice(sides)
    height, width = body.shape
    depth, along = (height, width) if side in ("above", "below") else (width, height)
    shape, shade = _turned(draw(chance, along, depth, height), side)
    texture = _tiled(picture.crop(box), shape.size, chance.uniform(*_ENLARGED))
    paint = (texture.astype(np.uint16) * np.asarray(shade, np.uint16)[..., None] // 255).astype(np.uint8)
    return Cover(Image.fromarray(paint), shape, side, 0, title, name, box)


def _background(chance: Random, person: Bool[NDArray[Any], "h w"]) -> tuple[int, int, int, int] | None:
    """A square without any of the person, of the largest side in `_PATCHES` that fits somewhere."""
    counts = np.pad(person.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    for share in _PATCHES:
        side = round(share * person.shape[1])
        inside = counts[side:, side:] - counts[:-side, side:] - counts[side:, :-side] + counts[:-side, :-side]
        free = np.argwhere(inside == 0)
        if len(free):
            top, left = free[chance.randrange(len(free))].tolist()
            return left, top, left + side, top + side
    return None


def _tiled(patch: Image.Image, size: tuple[int, int], scale: float) -> UInt8[NDArray[Any], "h w 3"]:
    """A patch enlarged and mirrored on and on, so that no seam shows, to (width, height)."""
    side = round(patch.width * scale)
    tile = np.asarray(patch.resize((side, side), Image.Resampling.BICUBIC))
    missing = ((0, max(0, size[1] - side)), (0, max(0, size[0] - side)), (0, 0))
    filled: NDArray[np.uint8] = np.pad(tile, missing, mode="symmetric")[: size[1], : size[0]]
    return filled


_Drawn = tuple[Image.Image, Image.Image]  # shape and shade: 255 shows the texture as it is, 0 black


def _turned(drawn: _Drawn, side: Side) -> _Drawn:
    """What was drawn as it comes from below, as it comes from another side."""
    turn = {
        "above": Image.Transpose.FLIP_TOP_BOTTOM,
        "left": Image.Transpose.ROTATE_270,
        "right": Image.Transpose.ROTATE_90,
    }
    shape, shade = (sheet if side == "below" else sheet.transpose(turn[side]) for sheet in drawn)
    return shape, shade


def _sheets(along: int, depth: int) -> tuple[_Drawn, ImageDraw.ImageDraw, ImageDraw.ImageDraw]:
    shape, shade = (Image.new("L", (_FINER * along, _FINER * depth), value) for value in (0, 255))
    return (shape, shade), ImageDraw.Draw(shape), ImageDraw.Draw(shade)


def _reduced(drawn: _Drawn) -> _Drawn:
    shape, shade = (sheet.reduce(_FINER) for sheet in drawn)
    return shape, shade


# Shapes: each is drawn as it comes in from below, `along` pixels wide and `depth` deep, before a photo so high.


def _vehicle(chance: Random, along: int, depth: int, height: int) -> _Drawn:
    """As much of a car's side as the photo shows."""
    drawn, shape, shade = _sheets(along, depth)
    metre = _FINER * height * chance.uniform(*_METRE)
    middle, mirrored = chance.uniform(0.4, _CAR_LENGTH - 0.4), chance.choice((-1, 1))

    def pixel(x: float, y: float) -> tuple[int, int]:
        return round(_FINER * along / 2 + mirrored * (x - middle) * metre), round(y * metre)

    shape.polygon([pixel(x, y) for x, y in _CAR], fill=255)
    shade.polygon([pixel(x, y) for x, y in _CAR_WINDOWS], fill=90)
    for wheel in _CAR_WHEELS:
        x, y, radius = *pixel(wheel, 1.17), round(0.33 * metre)
        shape.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        shade.ellipse((x - radius, y - radius, x + radius, y + radius), fill=50)
    return _reduced(drawn)


def _plant(chance: Random, along: int, depth: int, height: int) -> _Drawn:
    """Leaves by the hundred; their edge is ragged."""
    drawn, shape, shade = _sheets(along, depth)
    unit = _FINER * height
    shape.rectangle((0, round(0.14 * unit), _FINER * along, _FINER * depth), fill=255)
    for leaf in range(300):
        # Every other one at the edge. Sums and products alone are the same on every machine; logarithms are not.
        reach = 0.28 * unit if leaf % 2 else _FINER * depth
        x, y = chance.uniform(0, _FINER * along), (chance.random() + chance.random()) / 2 * reach
        wide, tall = chance.uniform(0.01, 0.04) * unit, chance.uniform(0.01, 0.04) * unit
        corners = (round(x - wide), round(y - tall), round(x + wide), round(y + tall))
        shape.ellipse(corners, fill=255)
        shade.ellipse(corners, fill=chance.randint(140, 255))
    return _reduced(drawn)


def _wall(chance: Random, along: int, depth: int, height: int) -> _Drawn:
    """All behind a straight edge that leans a little."""
    drawn, shape, shade = _sheets(along, depth)
    lean = round(_FINER * along * chance.uniform(0.0, 0.07))
    ends = (lean, 0) if chance.random() < 0.5 else (0, lean)
    edge = [(0, ends[0]), (_FINER * along, ends[1])]
    shape.polygon([*edge, (_FINER * along, _FINER * depth), (0, _FINER * depth)], fill=255)
    shade.line(edge, fill=130, width=round(0.04 * _FINER * height))
    return _reduced(drawn)


def _post(chance: Random, along: int, depth: int, height: int) -> _Drawn:
    """An upright band, darker at its edges, as round things are."""
    wide = round(depth * chance.uniform(0.35, 0.7))
    drawn, shape, shade = _sheets(along, wide)
    shape.rectangle((0, 0, _FINER * along, _FINER * wide), fill=255)
    for edge in (0, _FINER * wide):
        shade.line([(0, edge), (_FINER * along, edge)], fill=130, width=round(0.04 * _FINER * height))
    return _reduced(drawn)


# By title: the sides it may come from, and its shape.
_SHAPES: Final[dict[str, tuple[tuple[Side, ...], Callable[[Random, int, int, int], _Drawn]]]] = {
    "vehicle": (("below",), _vehicle),
    "plant": (("below", "below", "left", "right", "above"), _plant),
    "wall": (("below", "left", "right"), _wall),
    "post": (("left", "right"), _post),
}
