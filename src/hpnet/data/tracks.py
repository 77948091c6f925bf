"""Tracks: who is where in which frame, as trackers and MOTChallenge write it.

In: a text file with a line per box, `frame,id,x,y,w,h,...`. Out: `Box`es, and `Track`s, the boxes of one person in
their order. Ground truth, detections and trackers' results differ in what follows the sixth field:

- ground truth of MOT16, MOT17, MOT20 (nine fields): flag, class, visibility. Only class 1, pedestrians, is a person to
  be found; 7 (static) and others are not: cars, bicycles, reflections. Flag 0 is not to be considered.
- detections, trackers' results, ground truth of MOT15 (seven or ten fields): confidence (0 in ground truth: not to be
  considered), and coordinates in the world, which say nothing here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from typing import Final, NamedTuple

PEDESTRIAN: Final = 1  # MOT16's classes: the only one whose boxes count
_TRUTH_FIELDS: Final = 9
_LEAST_FIELDS: Final = 6
_HEADER: Final = "frame"
_NAMED: Final = 3  # how many culprits an error line names
NOT_A_PERSON: Final = "of another class than pedestrians"
NOT_CONSIDERED: Final = "marked as not to be considered"
UNSURE: Final = "below the confidence asked for"


class TrackError(ValueError):
    """A file of boxes that cannot be used; the text names it and the reason."""


class Box(NamedTuple):
    """One person in one frame.

    Attributes:
        line: in the file, from 1.
        frame: from 1.
        track: the track's number, 0 or more; None if the file does not say which boxes belong together.
        left, top, width, height: pixels, as they stand in the file; a box may reach beyond the picture. Whether the
            picture's corner is (0, 0) or MOTChallenge's (1, 1), few programs agree, and no crop shows: it is (0, 0).
    """

    line: int
    frame: int
    track: int | None
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class BoxFile:
    """What a file of boxes holds.

    Attributes:
        boxes: in the order of frames, then lines.
        problems: lines that cannot be used, each as one line of text with file, line number and reason.
        left_out: how many boxes are fine but not wanted, by reason.
    """

    boxes: list[Box]
    problems: list[str]
    left_out: Counter[str]


@dataclass(frozen=True)
class Track:
    """The boxes of one person in the order of frames, at least one; or a piece of a long track."""

    boxes: tuple[Box, ...]

    @property
    def number(self) -> int | None:
        """The track's number; None for a box that belongs to none."""
        return self.boxes[0].track

    @property
    def end(self) -> tuple[int, int]:
        """Frame and line of its last box: the place in the file's order at which the track is over."""
        return self.boxes[-1].frame, self.boxes[-1].line


def read_boxes(path: Path, confidence: float | None = None) -> BoxFile:
    """Read a file of boxes in any of the variants above; spaces may stand for commas; a first line may name fields.

    Args:
        path: the file.
        confidence: leave out boxes below it.

    Raises:
        TrackError: no such file, not text, or not a single box in it.
    """
    boxes: list[Box] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    seen: dict[tuple[int, int], int] = {}
    for line, fields in _lines(path):
        try:
            box = _box(line, fields)
            if reason := _unwanted(fields, confidence):
                left_out[reason] += 1
                continue
            _check_new(box, seen)
        except TrackError as error:
            problems.append(f"{path}, line {line}: {error}")
            continue
        boxes.append(box)
    if not boxes:
        reasons = [*problems[:_NAMED], *(f"{count} are {reason}" for reason, count in left_out.items())]
        raise TrackError(f"{path}: holds no box of a person ({'; '.join(reasons) or 'it is empty'})")
    return BoxFile(sorted(boxes, key=lambda box: (box.frame, box.line)), problems, left_out)


def tracks_of(boxes: Sequence[Box], *, longest: int | None = None, step: int = 1) -> list[Track]:
    """Gather boxes into tracks, in the order in which these end.

    Args:
        boxes: in the order of frames; one without a track's number is a track by itself.
        longest: frames a track may span; a longer one is parted, counted from its first frame.
        step: of each track, take one box in so many only, from its first on; people change little from frame to frame.

    Returns:
        The tracks, sorted by the place of their last box.
    """
    if step < 1 or (longest is not None and longest < 1):
        raise ValueError(f"step and longest must be at least 1, not {step} and {longest}")
    together: defaultdict[int, list[Box]] = defaultdict(list)
    for box in boxes:
        if box.track is not None:
            together[box.track].append(box)
    alone = [Track((box,)) for box in boxes if box.track is None]
    tracks = [Track(piece[::step]) for track in together.values() for piece in _parted(track, longest)]
    return sorted(alone + tracks, key=lambda track: track.end)


def _parted(boxes: list[Box], longest: int | None) -> Iterator[tuple[Box, ...]]:
    if longest is None:
        yield tuple(boxes)
        return
    pieces: defaultdict[int, list[Box]] = defaultdict(list)
    for box in boxes:
        pieces[(box.frame - boxes[0].frame) // longest].append(box)
    yield from map(tuple, pieces.values())


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that holds any, with its number."""
    if not path.is_file():
        raise TrackError(f"{path}: no such file of boxes")
    try:
        with path.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                fields = [field.strip() for field in line.split(",")] if "," in line else line.split()
                if fields and not (number == 1 and fields[0].lower() == _HEADER):
                    yield number, fields
    except (UnicodeDecodeError, OSError) as error:
        raise TrackError(f"{path}: not a text file of boxes ({error})") from error


def _box(line: int, fields: list[str]) -> Box:
    if len(fields) < _LEAST_FIELDS:
        raise TrackError(f"has {len(fields)} fields; a box is frame,id,x,y,w,h")
    numbers = [_number(field, name) for field, name in zip(fields, ("frame", "id", *"xywh"), strict=False)]
    frame, track = _whole(numbers[0], "frame"), _whole(numbers[1], "id")
    left, top, width, height = numbers[2:]
    if frame < 1:
        raise TrackError(f"frame {frame}: frames count from 1")
    if width <= 0 or height <= 0:
        raise TrackError(f"a box of {width:g} x {height:g} pixels shows nothing")
    return Box(line, frame, track if track >= 0 else None, left, top, width, height)


def _check_new(box: Box, seen: dict[tuple[int, int], int]) -> None:
    if box.track is None:
        return
    first = seen.setdefault((box.frame, box.track), box.line)
    if first != box.line:
        raise TrackError(f"track {box.track} stands in frame {box.frame} already, in line {first}")


def _unwanted(fields: list[str], confidence: float | None) -> str | None:
    """Why a box is not wanted; None if it is."""
    if len(fields) == _LEAST_FIELDS:
        return None
    sure = _number(fields[_LEAST_FIELDS], "confidence")
    if len(fields) == _TRUTH_FIELDS and _number(fields[7], "class") not in (PEDESTRIAN, -1):
        return NOT_A_PERSON
    if sure == 0:
        return NOT_CONSIDERED
    return UNSURE if confidence is not None and sure < confidence else None


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise TrackError(f"{name} is {text!r}, not a number") from None
    if not isfinite(value):
        raise TrackError(f"{name} is {text}, not a finite number")
    return value


def _whole(value: float, name: str) -> int:
    if floor(value) != value:
        raise TrackError(f"{name} is {value:g}, not a whole number")
    return int(value)
