"""The verb `add`: the ways into a gallery.

In: a folder of photos, one photo, a CSV, or footage with boxes around its people. Out: people in a gallery, committed
piece by piece, so that little is lost when a long run is stopped. Nothing else is written: no crop touches the disk.
"""

from __future__ import annotations

import json as json_format
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from hpnet.console import remark, say, tell_skipped, tracked
from hpnet.data.footage import Footage, Frame, Gap, Rectangle, open_footage
from hpnet.data.photos import PHOTO_SUFFIXES
from hpnet.data.reid import Person, read_folder, read_table
from hpnet.data.tracks import Box, Track, read_boxes, tracks_of
from hpnet.embed import Embedder
from hpnet.gallery import Attribute, Gallery, GalleryError, Moment, Value
from hpnet.gallery.columns import attribute_columns, typed_column
from hpnet.parts import PartFeatures
from hpnet.tracklets import Tracklet

_PHOTOS_AT_ONCE: Final = 4096  # looked at between two commits: little is lost when a long run is stopped
_NARROWEST: Final = 0.25  # of a crop's least height: the least width
_NAMED: Final = 20  # how many things skipped are named one by one


class _Sighting(NamedTuple):
    """One person as the gallery takes it."""

    features: PartFeatures
    path: str
    camera: Value | None
    time: Moment | None
    identity: Value | None
    attributes: Mapping[str, Attribute]


@dataclass
class _Course:
    """How far an `add` has come.

    Attributes:
        done: entries of the source gone through and committed, those skipped by wish included.
        added: people put into the gallery.
        faults: what was wrong with the input, a line each.
        left_out: how many boxes are fine but of no use, by reason.
    """

    done: int
    added: int = 0
    faults: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def add(
    source: Path,
    *,
    gallery: Path,
    boxes: Path | None = None,
    tracklets: bool = True,
    every: float | None = None,
    step: int = 1,
    camera: str | None = None,
    start: str | None = None,
    fps: float | None = None,
    confidence: float | None = None,
    smallest: int = 32,
    skip: int = 0,
    weights: Path = Path("compact"),
    batch_size: int = 32,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Put people into a gallery; it is made if it does not exist.

    Args:
        source: a folder of photos, searched with all below it; one photo; a CSV with columns path, identity, camera,
            time and others, which become attributes; or footage: a video file, a folder of frames, or a sequence of
            MOTChallenge.
        gallery: the gallery's folder.
        boxes: where the people are in the footage, in MOTChallenge's form: frame,id,x,y,w,h,... a line.
        tracklets: make one person of all views on a track; false takes each box by itself.
        every: seconds; a track that lasts longer becomes several people, one for each such span.
        step: of each track, look at one box in so many only.
        camera: number or name of the camera, for all whose camera the source does not tell.
        start: date and time of the footage's first frame, such as 2024-05-01T12:00:00+02:00.
        fps: frames per second, if not as seqinfo.ini or the video says.
        confidence: leave out boxes of which the detector or tracker was less sure.
        smallest: leave out boxes of less height in pixels, or of less than a quarter of it in width.
        skip: how many to leave out at the beginning; a run that was stopped says how many it has added.
        weights: weights file, or the name of bundled weights; a gallery holds features of one kind of weights only.
        batch_size: photos that go through the network together.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print what was done as JSON.
    """
    if skip < 0 or smallest < 1:
        raise ValueError(f"skip must be 0 or more and smallest at least 1, not {skip} and {smallest}")
    course = _Course(done=skip)
    where = None if camera is None else _value(camera)
    if boxes is None:
        _refuse_footage(source, {"every": every, "start": start, "fps": fps, "confidence": confidence})
        people = read_table(source) if source.suffix.lower() == ".csv" else read_folder(source)
        _check_columns(source, people)
        embedder = Embedder(weights, device=device, batch_size=batch_size)
        arriving = _photographed(people[skip:], where, embedder, course)
    else:
        footage = open_footage(source, fps)
        longest = None if every is None else _frames_in(every, footage)
        tracks = _read_tracks(boxes, confidence, course, tracklets=tracklets, longest=longest, step=step)[skip:]
        clock = _Clock(_moment(start, footage), where)
        embedder = Embedder(weights, device=device, batch_size=batch_size)
        arriving = _filmed(footage, tracks, clock, smallest, embedder, course)
    store = _opened(gallery, embedder.fingerprint)
    _commit(store, arriving, course)
    return _tell(store, gallery, course, json=json)


def _check_columns(source: Path, people: Sequence[Person]) -> None:
    """What a gallery cannot take is said before anything is looked at."""
    try:
        for name in ("identity", "camera", "time"):
            typed_column(name, [getattr(person, name) for person in people])
        attribute_columns(_attributes(people))
    except GalleryError as error:
        raise GalleryError(f"{source}: {error}") from error


def _opened(gallery: Path, fingerprint: str) -> Gallery:
    """The gallery, made if nothing is there, or an empty folder; perhaps another writer makes it at the same moment."""
    if not gallery.exists() or (gallery.is_dir() and not any(gallery.iterdir())):
        with suppress(GalleryError):
            return Gallery.create(gallery, fingerprint)
    return Gallery.open(gallery, fingerprint)


def _commit(store: Gallery, arriving: Iterator[tuple[int, list[_Sighting]]], course: _Course) -> None:
    """Put in what arrives, commit by commit; when stopped, say how to go on."""
    try:
        for entries, people in arriving:
            if people:
                store.add(
                    PartFeatures.concatenate([person.features for person in people]),
                    [person.path for person in people],
                    cameras=[person.camera for person in people],
                    times=[person.time for person in people],
                    identities=[person.identity for person in people],
                    attributes=_attributes(people),
                )
            course.done += entries
            course.added += len(people)
    except (KeyboardInterrupt, ValueError, OSError):  # stopped, or the disk is full, or what comes does not fit
        _tell_faults(course)
        if course.added:
            remark(f"stopped: {course.added} added, and they stay; to go on, give the same and --skip {course.done}")
        raise


def _attributes(people: Sequence[_Sighting] | Sequence[Person]) -> dict[str, list[Attribute | None]]:
    """What else is known of people, as columns."""
    names = dict.fromkeys(name for person in people for name in person.attributes)
    return {name: [person.attributes.get(name) for person in people] for name in names}


def _tell(store: Gallery, gallery: Path, course: _Course, *, json: bool) -> int:
    _tell_faults(course)
    added, skipped = course.added, len(course.faults)
    summary = {
        "added": added,
        "skipped": skipped,
        "left_out": dict(course.left_out),
        "people": len(store),
        "gallery": str(gallery),
    }
    text = f"{added} added, {skipped} skipped; {gallery} holds {len(store)}"
    say(json_format.dumps(summary) if json else text)
    return 1 if course.faults else 0


def _tell_faults(course: _Course) -> None:
    tell_skipped(course.faults[:_NAMED])
    if len(course.faults) > _NAMED:
        remark(f"skipped {len(course.faults) - _NAMED} more")
    for reason, count in course.left_out.items():
        remark(f"left out: {count} {reason}")


# --- photos


def _photographed(
    people: Sequence[Person], camera: Value | None, embedder: Embedder, course: _Course
) -> Iterator[tuple[int, list[_Sighting]]]:
    for start in range(0, len(people), _PHOTOS_AT_ONCE):
        some = people[start : start + _PHOTOS_AT_ONCE]
        embedded = embedder.embed_files([person.path for person in some], progress="embedding")
        course.faults.extend(failure.reason for failure in embedded.failures)
        by_path = {person.path: person for person in some}
        sightings = []
        for row, path in enumerate(embedded.paths):
            person = by_path[path]
            seen_by = camera if person.camera is None else person.camera
            about = (seen_by, person.time, person.identity, person.attributes)
            sightings.append(_Sighting(embedded.features[row], str(path.resolve()), *about))
        yield len(some), sightings


def _refuse_footage(source: Path, options: dict[str, object]) -> None:
    """Footage without boxes is no crowd of people, and options of footage say nothing of photos."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"--{given[0]} is for footage; name its people with --boxes FILE")
    film = source.is_file() and source.suffix.lower() not in (*PHOTO_SUFFIXES, ".csv")
    if film or (source / "seqinfo.ini").is_file():
        raise ValueError(f"{source}: looks like footage; say with --boxes FILE where in it the people are")


def _value(text: str) -> Value:
    """A camera as the CSV's reader takes it: a whole number is a number."""
    return int(text) if re.fullmatch("-?[0-9]+", text.strip()) else text.strip()


# --- footage


class _Clock(NamedTuple):
    """When frame 1 was taken, and by which camera; None where that is not known."""

    start: datetime | None
    camera: Value | None

    def at(self, seconds: float | None) -> datetime | None:
        return None if self.start is None or seconds is None else self.start + timedelta(seconds=seconds)


class _View(NamedTuple):
    """One box, cut out."""

    box: Box
    crop: UInt8[Tensor, "3 H W"]
    area: int  # pixels
    address: str
    seconds: float | None


class _Gathering:
    """All that is kept of a track while its views pass: the running template and where it was seen best."""

    def __init__(self) -> None:
        self.frames: list[int] = []  # the first and the last
        self.track: int | None = None
        self.tracklet = Tracklet()
        self.best = (-1, -1)
        self.address = ""
        self.seconds: float | None = None

    def see(self, features: PartFeatures, view: _View) -> None:
        self.tracklet.see(features)
        self.seconds = view.seconds
        self.frames = [*self.frames[:1], view.box.frame]
        self.track = view.box.track
        # The best view shows most parts; of such, it is the largest.
        if (rank := (int(features.visibility.sum()), view.area)) > self.best:
            self.best, self.address = rank, view.address

    def sighting(self, clock: _Clock) -> _Sighting:
        about = {"first_frame": self.frames[0], "last_frame": self.frames[-1], "views": self.tracklet.views}
        attributes = about if self.track is None else {"track": self.track, **about}
        return _Sighting(self.tracklet.template(), self.address, clock.camera, clock.at(self.seconds), None, attributes)


def _read_tracks(
    boxes: Path, confidence: float | None, course: _Course, *, tracklets: bool, longest: int | None, step: int
) -> list[Track]:
    read = read_boxes(boxes, confidence)
    course.faults.extend(read.problems)
    course.left_out.update({f"boxes {reason}": count for reason, count in read.left_out.items()})
    tracks = tracks_of(read.boxes, longest=longest, step=step)
    if tracklets:
        return tracks
    return sorted((Track((box,)) for track in tracks for box in track.boxes), key=lambda track: track.end)


def _moment(start: str | None, footage: Footage) -> datetime | None:
    if start is None:
        return None
    if footage.fps is None:
        raise ValueError(f"{footage.path}: nothing says how fast its frames follow each other; give --fps")
    try:
        return datetime.fromisoformat(start)
    except ValueError:
        raise ValueError(f"--start {start!r} is no date and time; write it as 2024-05-01T12:00:00+02:00") from None


def _frames_in(seconds: float, footage: Footage) -> int:
    if not seconds > 0:
        raise ValueError(f"every must be above 0 seconds, not {seconds}")
    if footage.fps is None:
        raise ValueError(f"{footage.path}: nothing says how fast its frames follow each other; give --fps")
    return max(1, round(seconds * footage.fps))


def _filmed(
    footage: Footage, tracks: Sequence[Track], clock: _Clock, smallest: int, embedder: Embedder, course: _Course
) -> Iterator[tuple[int, list[_Sighting]]]:
    """Everybody in the footage, in the order in which tracks end, handed on each time enough was looked at."""
    owner = {box.line: number for number, track in enumerate(tracks) for box in track.boxes}
    passing: defaultdict[int, _Gathering] = defaultdict(_Gathering)
    ended = handed = looked_at = 0
    views = _views(footage, tracks, embedder.model.config.size, smallest, course)
    for some in _chunks(views, embedder.batch_size):
        features = embedder(torch.stack([view.crop for view in some]))
        for row, view in enumerate(some):
            passing[owner[view.box.line]].see(features[row], view)
        looked_at += len(some)
        reached = (some[-1].box.frame, some[-1].box.line)
        while ended < len(tracks) and tracks[ended].end <= reached:
            ended += 1
        if looked_at >= _PHOTOS_AT_ONCE:
            yield ended - handed, [passing.pop(n).sighting(clock) for n in range(handed, ended) if n in passing]
            handed, looked_at = ended, 0
    yield len(tracks) - handed, [passing[n].sighting(clock) for n in sorted(passing)]


def _views(
    footage: Footage, tracks: Sequence[Track], size: tuple[int, int], smallest: int, course: _Course
) -> Iterator[_View]:
    """What the boxes show, in the order of frames, then lines; what cannot be shown is noted and left out."""
    by_frame: defaultdict[int, list[Box]] = defaultdict(list)
    for box in sorted((box for track in tracks for box in track.boxes), key=lambda box: (box.frame, box.line)):
        by_frame[box.frame].append(box)
    small = f"boxes less than {smallest} x {_NARROWEST * smallest:g} pixels of the picture (--smallest)"
    for frame in tracked(footage.frames(by_frame), "frames", len(by_frame)):
        if isinstance(frame, Gap):
            course.faults.append(f"{frame.reason} ({len(by_frame[frame.number])} boxes)")
            continue
        for box in by_frame[frame.number]:
            part = frame.clipped(box.left, box.top, box.width, box.height)
            if part is None or part.height < smallest or part.width < _NARROWEST * smallest:
                course.left_out[small] += 1
            else:
                yield _view(frame, box, part, size)


def _view(frame: Frame, box: Box, part: Rectangle, size: tuple[int, int]) -> _View:
    return _View(box, frame.cut(part, size), part.width * part.height, frame.address_of(part), frame.seconds)


def _chunks(views: Iterable[_View], size: int) -> Iterator[list[_View]]:
    remaining = iter(views)
    while some := list(islice(remaining, size)):
        yield some
