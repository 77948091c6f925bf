"""Human-labelled parsing sets: crops of people with their part maps, for the stream that learns parsing alone.

In: Pascal-Person-Part or DensePose-COCO as their authors publish them. Out: `ParsingSample`s of one size, their labels
folded into the four parts. A photo or label that cannot be used is reported and skipped; the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpnet.data.photos import Failure, PhotoError, read_part_map, read_photo
from hpnet.parts import BACKGROUND, Part, fold

PERSON_HEIGHT_MIN: Final = 48  # pixels; below, a head is hardly larger than one cell of the network's output
UPRIGHT_MIN: Final = 1.2  # height / width of a person's box, Pascal-Person-Part
SECOND_HEAD_MIN: Final = 0.15  # a second piece of head counts as a second person from this share of the largest on
HEAD_SHARE_MAX: Final = 0.4  # of a person's labelled pixels; above it is a portrait, not a person in a scene
MARGIN: Final = 0.05  # around a person's box, as a share of its height; detectors leave about as much

DENSEPOSE_UPRIGHT: Final = 1.8  # the authors' filter: height / width above, and at least four of the five groups
DENSEPOSE_GROUPS_MIN: Final = 4
DENSEPOSE_GROUPS: Final[dict[str, tuple[int, ...]]] = {  # COCO's joints
    "face": (0, 1, 2, 3, 4),
    "shoulders": (5, 6),
    "hips": (11, 12),
    "knees": (13, 14),
    "ankles": (15, 16),
}
_DENSEPOSE_LABELS: Final = 14
_DENSEPOSE_SIDE: Final = 256  # labels are drawn on 256 x 256 cells that span the person's box

_ITEMS_AHEAD: Final = 128  # photos read before the first of them is asked for
_VISIBLE: Final = 2  # COCO's flag: 0 not labelled, 1 labelled but hidden, 2 visible


class ParsingError(ValueError):
    """A parsing set, or one entry of it, that cannot be used; the text names the file and the reason."""


@dataclass(frozen=True, eq=False)
class ParsingSample:
    """One person with labelled parts.

    Attributes:
        photo: (3, H, W) the crop, 8-bit RGB.
        part_map: (H, W) 0 background, 1..4 the parts (`Part.label`) of this person alone.
        source: which person of which photo, for people to find it again.
    """

    photo: UInt8[Tensor, "3 H W"]
    part_map: UInt8[Tensor, "H W"]
    source: str


class Box(NamedTuple):
    """A rectangle in pixels: left and top inside, right and bottom just outside."""

    left: float
    top: float
    right: float
    bottom: float


def read_pascal(
    root: Path,
    split: Literal["train", "val"],
    size: tuple[int, int],
    failures: list[Failure] | None = None,
    margin: float = MARGIN,
) -> Iterator[ParsingSample]:
    """Read the people of Pascal-Person-Part: `<split>_id.txt`, `JPEGImages/<id>.jpg`, `part_masks/<id>.png`.

    The set has no labels of instances, several people a photo. A person is a connected piece of foreground (pixels
    that touch, also at a corner) with the pieces around it that have no head of their own (`_people`), and is kept if

    - its box is at least 48 pixels high and 1.2 times as high as wide (sitting and lying people go),
    - it shows a head and a torso; the head's middle lies above the torso's, and the torso's above the legs' if any,
    - it has one head only: a second piece of head of 15 % of the largest or more means that two people touch,
    - its head takes at most 40 % of it (close-ups of faces go).

    Legs may be missing: people cut off by the photo or a table teach what invisible parts look like. The crop is the
    box with a margin of 5 % of its height (or `margin`), inside the photo; other people in it are background.

    Args:
        root: the folder of the set.
        split: "train" or "val".
        size: (height, width) of the samples in pixels; photos are resized bilinearly, maps to the nearest.
        failures: receives what cannot be used (and is skipped); without it the first such file raises.
        margin: around a person's box, as a share of its height.

    Raises:
        ParsingError: the folder or its list of ids is missing or empty; without `failures` also a bad photo or mask.
    """
    names = _ids(Path(root) / f"{split}_id.txt")

    def read(name: str) -> list[ParsingSample]:
        photo_path, mask_path = Path(root) / "JPEGImages" / f"{name}.jpg", Path(root) / "part_masks" / f"{name}.png"
        labels = _labelled(photo_path, mask_path)
        people = [person for person in _people(labels) if _upright(person)]
        if not people:
            return []  # the photo need not be decoded
        photo = _picture(read_photo(photo_path), labels.shape, photo_path, mask_path)
        boxes = [_with_margin(_box(person > 0), person.shape, margin) for person in people]
        return [
            _sample(photo, box, person, box, size, f"{name}#{number}")
            for number, (person, box) in enumerate(zip(people, boxes, strict=True))
        ]

    return _read_all(names, read, lambda name: Path(root) / "part_masks" / f"{name}.png", failures)


def read_densepose(
    annotations: Path, photos: Path, size: tuple[int, int], failures: list[Failure] | None = None
) -> Iterator[ParsingSample]:
    """Read the people of DensePose-COCO that the authors of HPNet keep.

    Kept: at least four of the five groups of joints (face, shoulders, hips, knees, ankles) with a joint flagged
    visible, and a box more than 1.8 times as high as wide. The crop is the box, as far as it lies inside the photo.

    Args:
        annotations: json in COCO's format whose annotations hold `bbox`, `keypoints` and `dp_masks` (14 run-length
            masks of 256 x 256 cells that span the box, some empty), like `densepose_coco_2014_train.json`.
        photos: folder of the photos that the json names.
        size: (height, width) of the samples in pixels; photos are resized bilinearly, maps to the nearest.
        failures: receives what cannot be used (and is skipped); without it the first such photo raises.

    Raises:
        ParsingError: the json is missing, damaged or of another format; without `failures` also a bad photo or
            annotation.
    """
    by_photo = _densepose_people(Path(annotations))

    def read(name: str) -> list[ParsingSample]:
        path = Path(photos) / name
        kept = [person for entry in by_photo[name] if _kept(person := _annotation(entry, path))]
        if not kept:
            return []  # the photo need not be decoded
        picture = Image.fromarray(read_photo(path).permute(1, 2, 0).numpy())
        return [_densepose_sample(picture, person, size, path) for person in kept]

    return _read_all(sorted(by_photo), read, lambda name: Path(photos) / name, failures)


def stack(samples: Iterable[ParsingSample]) -> tuple[UInt8[Tensor, "n 3 H W"], UInt8[Tensor, "n H W"]]:
    """Photos and part maps of all samples, in order, kept in memory for training.

    Raises:
        ParsingError: there are no samples.
    """
    kept = list(samples)
    if not kept:
        raise ParsingError("the parsing set gives no sample: no person in it is labelled and upright enough")
    return torch.stack([sample.photo for sample in kept]), torch.stack([sample.part_map for sample in kept])


def parsing_hash(*roots: Path) -> str:
    """What a parsing set was, for result files: sha256 over the sorted names and sizes of all its files.

    Args:
        roots: folders or files of the set.
    """
    digest = hashlib.sha256()
    for root in map(Path, roots):
        if not root.exists():
            raise ParsingError(f"{root}: no such file or folder")
        files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
        named = sorted((path.relative_to(root.parent if root.is_file() else root).as_posix(), path) for path in files)
        for name, path in named:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()


def connected(mask: Bool[NDArray[Any], "H W"]) -> Int32[NDArray[Any], "H W"]:
    """Number the connected pieces of a mask, 1 onwards in reading order, 0 elsewhere; corners connect.

    Works on the runs of each row, joined by union-find with those they touch in the row above.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, begin = np.divmod(np.flatnonzero(edges == 1), width + 1)
    end = np.flatnonzero(edges == -1) % (width + 1)
    root = _runs_joined(row.tolist(), begin.tolist(), end.tolist())
    _, first, number = np.unique(root, return_index=True, return_inverse=True)
    number = (np.argsort(np.argsort(first)) + 1)[number]
    steps = np.zeros((height, width + 1), np.int32)
    steps[row, begin] = number
    steps[row, end] -= number.astype(np.int32)
    return np.cumsum(steps, axis=1, dtype=np.int32)[:, :width]


def _runs_joined(row: list[int], begin: list[int], end: list[int]) -> NDArray[np.int64]:
    """For each run of pixels, in reading order, the first run of its connected piece."""
    root = list(range(len(row)))

    def find(run: int) -> int:
        while root[run] != run:
            root[run] = root[root[run]]
            run = root[run]
        return run

    above = 0
    for run in range(len(row)):
        # Runs of the row above that end before this one begins can touch no later run of this row either.
        while row[above] < row[run] - 1 or (row[above] == row[run] - 1 and end[above] < begin[run]):
            above += 1
        touching = above
        while row[touching] == row[run] - 1 and begin[touching] <= end[run]:
            one, other = sorted((find(run), find(touching)))
            root[other] = one
            touching += 1
    return np.array([find(run) for run in range(len(row))], dtype=np.int64)


def _ids(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ParsingError(
            f"{path}: list of photo ids is missing or unreadable; is this Pascal-Person-Part?"
        ) from error
    if not names:
        raise ParsingError(f"{path}: the list of photo ids is empty")
    return names


def _labelled(photo_path: Path, mask_path: Path) -> NDArray[np.uint8]:
    """A photo's labels, folded into parts."""
    labels = read_part_map(mask_path)
    try:
        return fold(labels, "pascal").numpy()
    except ValueError as error:
        raise ParsingError(f"{mask_path}: {error}") from error


def _picture(photo: UInt8[Tensor, "3 H W"], shape: tuple[int, ...], photo_path: Path, mask_path: Path) -> Image.Image:
    if tuple(photo.shape[1:]) != shape:
        sizes = f"{shape[0]} x {shape[1]} pixels, its photo {photo.shape[1]} x {photo.shape[2]}"
        raise ParsingError(f"{mask_path}: the mask has {sizes} ({photo_path.name}); they must be equal")
    return Image.fromarray(photo.permute(1, 2, 0).numpy())


def _people(labels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Part maps of single people: connected foreground with a head, and the headless pieces that belong to it.

    A headless piece (legs below a table, a shin behind a ball) belongs to the one person in whose box's width, a
    quarter wider, its middle lies, if it is smaller; if two people may claim it, nobody gets it.
    """
    pieces = connected(labels != BACKGROUND)
    numbers = range(1, int(pieces.max(initial=0)) + 1)
    heads = set(np.unique(pieces[labels == Part.HEAD.label]).tolist())
    boxes = {number: _box(pieces == number) for number in numbers}
    areas = np.bincount(pieces.ravel())
    owner = {number: {number} for number in numbers if number in heads}
    for piece in (number for number in numbers if number not in heads):
        claims = [person for person in owner if areas[piece] < areas[person] and _beneath(boxes[piece], boxes[person])]
        if len(claims) == 1:
            owner[claims[0]].add(piece)
    for members in owner.values():
        yield np.where(np.isin(pieces, list(members)), labels, np.uint8(BACKGROUND))


def _beneath(piece: Box, person: Box) -> bool:
    """Whether a piece lies below a person's top, in line with the person."""
    slack = (person.right - person.left) / 4
    middle = (piece.left + piece.right) / 2
    return person.left - slack <= middle <= person.right + slack and piece.top >= person.top


def _upright(person: NDArray[np.uint8]) -> bool:
    """The rule of `read_pascal`."""
    box = _box(person > 0)
    height = box.bottom - box.top
    if height < PERSON_HEIGHT_MIN or height < UPRIGHT_MIN * (box.right - box.left):
        return False
    middles = [_middle_row(person == part.label) for part in (Part.HEAD, Part.TORSO)]
    legs = _middle_row((person == Part.UPPER_LEGS.label) | (person == Part.LOWER_LEGS.label))
    known = [*middles, *([] if legs is None else [legs])]
    if None in known or known != sorted(row for row in known if row is not None):
        return False
    head_sizes = np.sort(np.bincount(connected(person == Part.HEAD.label).ravel())[1:])
    if head_sizes.sum() > HEAD_SHARE_MAX * np.count_nonzero(person):
        return False
    return len(head_sizes) == 1 or bool(head_sizes[-2] < SECOND_HEAD_MIN * head_sizes[-1])


def _middle_row(mask: NDArray[np.bool_]) -> float | None:
    per_row = mask.sum(1)
    return float(per_row @ np.arange(len(per_row)) / per_row.sum()) if per_row.any() else None


def _box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _with_margin(box: Box, shape: tuple[int, ...], share: float) -> Box:
    margin = share * (box.bottom - box.top)
    return Box(
        max(0, box.left - margin),
        max(0, box.top - margin),
        min(shape[1], box.right + margin),
        min(shape[0], box.bottom + margin),
    )


def _sample(
    picture: Image.Image, box: Box, labels: NDArray[np.uint8], label_box: Box, size: tuple[int, int], source: str
) -> ParsingSample:
    """Cut the same rectangle out of photo and labels, each given in its own pixels, and bring both to one size."""
    photo = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    part_map = Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST, box=label_box)
    return ParsingSample(
        torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous(), torch.from_numpy(np.array(part_map)), source
    )


Item = TypeVar("Item")


def _read_all(
    items: Sequence[Item],
    read: Callable[[Item], list[ParsingSample]],
    path_of: Callable[[Item], Path],
    failures: list[Failure] | None,
) -> Iterator[ParsingSample]:
    """Read photo after photo, decoding ahead on threads; report and skip those that cannot be used."""

    def attempt(item: Item) -> list[ParsingSample] | Failure:
        try:
            return read(item)
        except (PhotoError, ParsingError) as error:
            if failures is None:
                raise
            return Failure(path_of(item), str(error))

    remaining = iter(items)
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        while piece := list(islice(remaining, _ITEMS_AHEAD)):
            for found in pool.map(attempt, piece):
                if isinstance(found, Failure):
                    assert failures is not None
                    failures.append(found)
                else:
                    yield from found


class _Annotation(NamedTuple):
    """One person of DensePose-COCO."""

    number: int
    box: Box
    flags: tuple[int, ...]
    parts: tuple[dict[str, Any] | None, ...]


def _densepose_people(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The annotations with part labels, by the file name of their photo."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParsingError(f"{path}: no such annotation file, or it may not be read") from error
    except ValueError as error:
        raise ParsingError(f"{path}: not a json file ({str(error).splitlines()[0]})") from error
    try:
        names = {photo["id"]: str(photo["file_name"]) for photo in content["images"]}
        labelled = [entry for entry in content["annotations"] if entry.get("dp_masks")]
        by_photo: dict[str, list[dict[str, Any]]] = {}
        for entry in labelled:
            by_photo.setdefault(names[entry["image_id"]], []).append(entry)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ParsingError(f"{path}: not annotations in COCO's format ({reason})") from error
    if not by_photo:
        raise ParsingError(f"{path}: no annotation has dp_masks; is this DensePose-COCO?")
    return by_photo


def _annotation(entry: dict[str, Any], path: Path) -> _Annotation:
    number = entry.get("id", "without id")
    try:
        left, top, width, height = (float(value) for value in entry["bbox"])
        flags = tuple(int(flag) for flag in entry["keypoints"][2::3])
        parts = tuple(part or None for part in entry["dp_masks"])
    except (KeyError, TypeError, ValueError) as error:
        raise ParsingError(f"{path}: annotation {number} has no proper bbox, keypoints and dp_masks") from error
    if len(flags) != 17 or len(parts) != _DENSEPOSE_LABELS or not (width > 0 and height > 0):
        raise ParsingError(f"{path}: annotation {number} must have 17 keypoints, 14 dp_masks and a box with an area")
    return _Annotation(number, Box(left, top, left + width, top + height), flags, parts)


def _kept(person: _Annotation) -> bool:
    """The authors' filter."""
    groups = sum(any(person.flags[joint] == _VISIBLE for joint in group) for group in DENSEPOSE_GROUPS.values())
    upright = person.box.bottom - person.box.top > DENSEPOSE_UPRIGHT * (person.box.right - person.box.left)
    return groups >= DENSEPOSE_GROUPS_MIN and upright


def _densepose_sample(picture: Image.Image, person: _Annotation, size: tuple[int, int], path: Path) -> ParsingSample:
    box = person.box
    inside = Box(max(0.0, box.left), max(0.0, box.top), min(picture.width, box.right), min(picture.height, box.bottom))
    if inside.right - inside.left < 1 or inside.bottom - inside.top < 1:
        raise ParsingError(f"{path}: annotation {person.number} has a box outside the photo")
    # The labels span the whole box; where the photo ends inside it, they are cut alike.
    cells = [
        _DENSEPOSE_SIDE * share
        for share in (
            (inside.left - box.left) / (box.right - box.left),
            (inside.top - box.top) / (box.bottom - box.top),
            (inside.right - box.left) / (box.right - box.left),
            (inside.bottom - box.top) / (box.bottom - box.top),
        )
    ]
    return _sample(picture, inside, _densepose_labels(person, path), Box(*cells), size, f"{path.name}#{person.number}")


def _densepose_labels(person: _Annotation, path: Path) -> NDArray[np.uint8]:
    """A person's labels, folded into parts, (256, 256) cells that span the box."""
    labels = np.zeros((_DENSEPOSE_SIDE, _DENSEPOSE_SIDE), np.uint8)
    for label, part in enumerate(person.parts, start=1):
        if part is None:
            continue
        try:
            labels[_run_length_mask(part["counts"], labels.shape)] = label
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ParsingError(
                f"{path}: annotation {person.number}, dp_masks[{label - 1}] is no run-length mask of "
                f"{_DENSEPOSE_SIDE} x {_DENSEPOSE_SIDE} cells"
            ) from error
    return fold(torch.from_numpy(labels), "densepose").numpy()


def _run_length_mask(counts: str, shape: tuple[int, int]) -> Bool[NDArray[Any], "H W"]:
    """Decode a mask in COCO's compressed run-length encoding: lengths of runs, off and on by turns, column by column.

    A length is written in characters of five bits, lowest first, counted from "0"; a sixth bit says that more follow,
    the highest bit of the last is the sign. From the fourth length on, the difference to the last but one is written.

    pycocotools 2.0.11 would do, but every call warns under NumPy 2 (and will fail one day), and it is C code that
    reads whatever a damaged file holds.
    """
    code = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if len(code) == 0 or code.min() < 0 or code.max() > 0b111111 or code[-1] & 0b100000:
        raise ValueError("not a run-length encoding")
    last = np.flatnonzero(code & 0b100000 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(code)) - np.repeat(first, last - first + 1))
    if place.max() > 25:
        raise ValueError("a run longer than any mask")
    lengths = np.add.reduceat((code & 0b11111) << place, first)
    lengths -= np.where(code[last] & 0b10000, 1 << (place[last] + 5), 0)
    for start in (1, 2):
        lengths[start::2] = np.cumsum(lengths[start::2])
    if lengths.min() < 0 or lengths.sum() != shape[0] * shape[1]:
        raise ValueError("the runs do not fill the mask")
    runs: NDArray[np.bool_] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return runs.reshape(shape[1], shape[0]).T
