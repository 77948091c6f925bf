"""Drawn photos of drawn people, and whole drawn data sets in Market-1501's layout.

In: identity, camera and shot numbers and a seed. Out: `Drawing`, a photo with its exact part map and visibility, after
whatever hides the person: obstacles in front, or a crop that cuts the person and is then resized, as detectors do. A
drawing is a pure function of its numbers. Thanks to it tests, demo, docs and benchmarks need no licensed photo.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from json import dumps
from math import pi
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFilter
from rich.table import Table
from torch import Tensor

from hpnet.console import say, tracked
from hpnet.data.cutouts import Cutout, Place
from hpnet.data.dolls import Doll, Pose, cut_out
from hpnet.data.photos import write_part_map, write_picture
from hpnet.data.scenes import OBSTACLES, Camera, obstacle
from hpnet.parts import PARTS, part_masks

NONE: Final = "none"
PASSER_BY: Final = "passer-by"
CUTS: Final = ("cut-below", "cut-above", "cut-side")
OCCLUSIONS: Final = (*OBSTACLES, PASSER_BY, *CUTS)
VISIBLE_SHARE: Final = 1 / 128  # of the photo's pixels: 64 of 128 x 64, a quarter of a small head
_FINER: Final = 2  # drawn so many times finer than asked for, then averaged
_SMALLEST: Final = (32, 16)
_IDENTITIES_MAX: Final = 9999  # Market-1501's names have four digits


@dataclass(frozen=True)
class Drawing:
    """A drawn photo and the truth about it.

    Attributes:
        photo: (3, H, W) uint8 RGB.
        part_map: (H, W) uint8, 0 background, else `Part.label`; only what can be seen.
        visibility: (p,) bool, true where the part covers at least `VISIBLE_SHARE` of the photo.
        identity: who it is.
        camera: who took it.
        occlusion: "none" or one of `OCCLUSIONS`.
    """

    photo: UInt8[Tensor, "3 H W"]
    part_map: UInt8[Tensor, "H W"]
    visibility: Bool[Tensor, "p"]
    identity: int
    camera: int
    occlusion: str


def draw(
    identity: int,
    camera: int,
    shot: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 128),
    occlusion: str | None = NONE,
) -> Drawing:
    """Draw one photo. The same arguments give the same picture; other occlusions give the same scene otherwise.

    Args:
        identity: who, 0 or more.
        camera: taken by which camera, 0 or more; it decides background, light, colours, blur and noise.
        shot: which of many photos of this person by this camera, 0 or more.
        seed: another seed is another world: other people, other cameras.
        size: (height, width) in pixels.
        occlusion: "none", one of `OCCLUSIONS`, or None for one of these by chance.

    Raises:
        ValueError: a number is negative, the size too small, or the occlusion unknown.
    """
    _check(identity, camera, shot, size, occlusion)
    canvas = (_FINER * size[0], _FINER * size[1])
    eye, chance = Camera.mounted(seed, camera), Random(f"shot {seed} {identity} {camera} {shot}")
    hiding = Random(f"hiding {seed} {identity} {camera} {shot}")
    occlusion = occlusion or hiding.choice(OCCLUSIONS)
    place, pose = _stance(eye, chance, canvas)
    pile = [cut_out(Doll.born(seed, identity), pose, place, canvas, eye.light)]
    if occlusion in OBSTACLES:
        pile.append(obstacle(occlusion, hiding, place, canvas))
    elif occlusion == PASSER_BY:
        pile.append(_passer_by(eye, hiding, place, canvas))
    photo, labels = _laid(_with_shadow(eye.view(canvas, chance), place), pile)
    frame = _frame(occlusion, hiding, place, canvas)
    photo = photo.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=frame)
    labels = labels.resize((size[1], size[0]), Image.Resampling.NEAREST, box=frame)
    part_map = torch.from_numpy(np.array(labels))
    return Drawing(
        photo=torch.from_numpy(np.array(eye.develop(photo, chance))).permute(2, 0, 1).contiguous(),
        part_map=part_map,
        visibility=part_masks(part_map).flatten(1).sum(1) >= VISIBLE_SHARE * part_map.numel(),
        identity=identity,
        camera=camera,
        occlusion=occlusion,
    )


def _check(identity: int, camera: int, shot: int, size: tuple[int, int], occlusion: str | None) -> None:
    if min(identity, camera, shot) < 0:
        raise ValueError(f"identity, camera and shot must be 0 or more, not {identity}, {camera}, {shot}")
    _check_size(size)
    if occlusion not in (None, NONE, *OCCLUSIONS):
        raise ValueError(f"unknown occlusion {occlusion!r}: choose {NONE!r} or one of {', '.join(OCCLUSIONS)}")


def _check_size(size: tuple[int, int]) -> None:
    if size[0] < _SMALLEST[0] or size[1] < _SMALLEST[1]:
        raise ValueError(f"size must be at least {_SMALLEST} (height, width), not {size}")


def _stance(eye: Camera, chance: Random, canvas: tuple[int, int]) -> tuple[Place, Pose]:
    height = canvas[0] * eye.zoom * chance.uniform(0.96, 1.04)
    x = canvas[1] * (0.5 + eye.lean + chance.uniform(-0.06, 0.06))
    top = (canvas[0] - height) * chance.uniform(0.3, 0.7)
    heading = eye.heading + chance.choice((0.0, pi)) + chance.gauss(0, 0.4)
    return Place(x, top, height), Pose.chosen(chance, heading)


def _passer_by(eye: Camera, chance: Random, place: Place, canvas: tuple[int, int]) -> Cutout:
    """Somebody else, nearer and so larger, who covers one side and is cut by the frame."""
    height = place.height * chance.uniform(1.15, 1.4)
    x = place.x + chance.choice((-1, 1)) * place.height * chance.uniform(0.13, 0.19)
    near = Place(x, place.top + place.height * chance.uniform(-0.08, 0.06), height)
    pose = Pose.chosen(chance, eye.heading + chance.choice((0.0, pi)) + chance.gauss(0, 0.4))
    other = cut_out(Doll.born(eye.seed, f"passer-by {chance.getrandbits(32)}"), pose, near, canvas, eye.light)
    other.labels = Image.new("L", other.labels.size)
    return other


def _with_shadow(ground: Image.Image, place: Place) -> Image.Image:
    shadow = Image.new("L", ground.size)
    (left, top), (right, bottom) = place.pixels([(-0.2, 0.955), (0.2, 1.025)])
    ImageDraw.Draw(shadow).ellipse((left, top, right, bottom), fill=110)
    ground.paste((20, 20, 24), mask=shadow.filter(ImageFilter.BoxBlur(0.02 * place.height)))
    return ground


def _laid(ground: Image.Image, pile: list[Cutout]) -> tuple[Image.Image, Image.Image]:
    """Lay cutouts over the ground, the last one uppermost: the photo and its part labels."""
    labels = Image.new("L", ground.size)
    for cutout in pile:
        ground.paste(cutout.paint, mask=cutout.shape)
        labels.paste(cutout.labels, mask=cutout.shape)
    return ground, labels


def _frame(occlusion: str, chance: Random, place: Place, canvas: tuple[int, int]) -> tuple[float, float, float, float]:
    """The detector's box in pixels (left, top, right, bottom): all of the canvas, or what a bad detector leaves."""
    left, top, right, bottom = 0.0, 0.0, float(canvas[1]), float(canvas[0])
    if occlusion == "cut-below":
        bottom = place.top + place.height * chance.uniform(0.42, 0.66)
    elif occlusion == "cut-above":
        top = place.top + place.height * chance.uniform(0.17, 0.45)
    elif occlusion == "cut-side":
        edge = place.x + place.height * chance.uniform(-0.03, 0.03)
        left, right = (left, edge) if chance.random() < 0.5 else (edge, right)
    return left, top, right, bottom


@dataclass(frozen=True)
class SyntheticConfig:
    """What a drawn data set holds.

    Attributes:
        identities: people to train on.
        test_identities: other people, to query and to search.
        cameras: cameras; everybody is seen by each.
        shots: photos per person and camera, in training and in the gallery (the query is one more).
        distractors: gallery photos of people who are never asked for (Market's 0000).
        junk: gallery photos that count neither way (Market's -1): bad crops.
        seed: another seed is another world.
        size: (height, width) in pixels.
        occluded_train: share of training photos that are occluded, so that visibility can be learnt.
        occluded_gallery: share of gallery photos that are occluded.
        quality: of the JPEG files, 1..95.
    """

    identities: int = 40
    test_identities: int = 40
    cameras: int = 4
    shots: int = 4
    distractors: int = 20
    junk: int = 10
    seed: int = 0
    size: tuple[int, int] = (128, 64)
    occluded_train: float = 0.3
    occluded_gallery: float = 0.1
    quality: int = 92

    def __post_init__(self) -> None:
        for name in ("identities", "test_identities", "cameras", "shots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("distractors", "junk"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("occluded_train", "occluded_gallery"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share between 0 and 1, not {getattr(self, name)}")
        if self.identities + self.test_identities > _IDENTITIES_MAX:
            raise ValueError(f"identities and test_identities together must be at most {_IDENTITIES_MAX} (four digits)")
        _check_size(self.size)


@dataclass(frozen=True)
class _Order:
    """One photo to be drawn, and the name it gets."""

    split: str
    name: str
    identity: int
    camera: int
    shot: int
    occlusion: str | None


def write_market1501(out: Path, config: SyntheticConfig | None = None) -> dict[str, int]:
    """Draw a data set into a folder, in the layout and names of Market-1501, and the truth beside it.

    `bounding_box_train`, `query` (half hidden), `bounding_box_test` (mostly whole) as in Market-1501; `query_whole`
    (the queries before anything hid them); `part_maps/<split>/<stem>.png` for every photo; `visibility.csv` with one
    row per photo: its path, 0 or 1 per part, and what hides the person. The folder appears when all of it is drawn.

    Args:
        out: a folder that is empty or does not exist.
        config: what to draw; None for the defaults.

    Returns:
        The number of photos per split.

    Raises:
        ValueError: the folder is not empty, or is a file.
    """
    config = config or SyntheticConfig()
    if out.is_file():
        raise ValueError(f"{out}: is a file; name a folder to write the drawn data set into")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty; name a new one, so that nothing of yours is overwritten")
    beside = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    try:
        counts = _write(beside, config)
        if out.is_dir():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return counts


def _write(folder: Path, config: SyntheticConfig) -> dict[str, int]:
    orders, rows = list(_orders(config)), []
    for order in tracked(orders, "drawing"):
        drawing = draw(
            order.identity, order.camera, order.shot, seed=config.seed, size=config.size, occlusion=order.occlusion
        )
        photo = Image.fromarray(drawing.photo.permute(1, 2, 0).numpy())
        write_picture(folder / order.split / f"{order.name}.jpg", photo, quality=config.quality)
        write_part_map(folder / "part_maps" / order.split / f"{order.name}.png", drawing.part_map)
        seen = [int(visible) for visible in drawing.visibility.tolist()]
        rows.append([f"{order.split}/{order.name}.jpg", *seen, drawing.occlusion])
    with (folder / "visibility.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["photo", *(part.name.lower() for part in PARTS), "occlusion"], *rows])
    return dict(Counter(order.split for order in orders))


def _orders(config: SyntheticConfig) -> Iterator[_Order]:
    """Everything to draw. Training people are numbered from 1, test people after them, distractors after those."""

    def order(split: str, identity: int, camera: int, shot: int, occluded: float, shown_as: str = "") -> _Order:
        name = f"{shown_as or f'{identity:04d}'}_c{camera}s1_{25 * shot + 1:06d}_00"
        hidden = Random(f"order {config.seed} {split} {identity} {camera} {shot}").random() < occluded
        return _Order(split, name, identity, camera, shot, None if hidden else NONE)

    cameras = range(1, config.cameras + 1)
    first_test = config.identities + 1
    first_distractor = first_test + config.test_identities
    for identity, camera, shot in product(range(1, first_test), cameras, range(config.shots)):
        yield order("bounding_box_train", identity, camera, shot, config.occluded_train)
    for identity, camera in product(range(first_test, first_distractor), cameras):
        yield order("query", identity, camera, 0, 1.0)
        yield order("query_whole", identity, camera, 0, 0.0)
        for shot in range(1, config.shots + 1):
            yield order("bounding_box_test", identity, camera, shot, config.occluded_gallery)
    for number in range(config.distractors):
        camera = 1 + number % config.cameras
        yield order("bounding_box_test", first_distractor + number, camera, number, config.occluded_gallery, "0000")
    for number in range(config.junk):
        # Shots beyond the gallery's own, so that no junk photo repeats one that counts.
        identity, camera = first_test + number % config.test_identities, 1 + number % config.cameras
        junk = order("bounding_box_test", identity, camera, config.shots + 1 + number, 0.0, "-1")
        yield replace(junk, occlusion=CUTS[number % len(CUTS)])


def synth(
    out: Path,
    *,
    identities: int = SyntheticConfig.identities,
    test_identities: int = SyntheticConfig.test_identities,
    cameras: int = SyntheticConfig.cameras,
    shots: int = SyntheticConfig.shots,
    distractors: int = SyntheticConfig.distractors,
    junk: int = SyntheticConfig.junk,
    occluded_train: float = SyntheticConfig.occluded_train,
    height: int = SyntheticConfig.size[0],
    width: int = SyntheticConfig.size[1],
    seed: int = SyntheticConfig.seed,
    json: bool = False,
) -> int:
    """Write a data set of drawn people in Market-1501's layout, with exact part maps and visibility.

    Args:
        out: folder to write into; it must be empty or not exist yet.
        identities: people to train on.
        test_identities: other people, half hidden in the queries and mostly whole in the gallery.
        cameras: how many cameras see everybody.
        shots: photos per person and camera, in training and in the gallery.
        distractors: gallery photos of people nobody asks for (identity 0000).
        junk: badly cut gallery photos that count neither way (identity -1).
        occluded_train: share of training photos in which something hides the person, 0..1.
        height: of the photos, in pixels.
        width: of the photos, in pixels.
        seed: another seed draws other people before other cameras.
        json: print JSON instead of a table.
    """
    config = SyntheticConfig(
        identities=identities,
        test_identities=test_identities,
        cameras=cameras,
        shots=shots,
        distractors=distractors,
        junk=junk,
        occluded_train=occluded_train,
        size=(height, width),
        seed=seed,
    )
    counts = write_market1501(out, config)
    if json:
        sys.stdout.write(dumps({"out": str(out), "photos": counts, "config": asdict(config)}) + "\n")
        return 0
    table = Table("folder", "photos", title=f"drawn people in {out}")
    for split, count in counts.items():
        table.add_row(split, f"{count:,}")
    say(table)
    return 0
