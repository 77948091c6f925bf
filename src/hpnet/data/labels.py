"""Labels that others have made, brought into part maps: one command that recognises what it is given.

In: a file or folder of part labels, confidence fields or joints, of the kinds in `labelkinds.KINDS`. Out: a folder of
part maps that mirrors the labels' own and so the data set's, with a manifest; of sets that hold whole photos, crops of
people beside their maps. A label that cannot be used is named and skipped; the rest goes on.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any, Final, Literal, NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from rich.table import Table
from torch import Tensor

from hpnet.console import remark, say, tell_skipped, tracked
from hpnet.data import fields
from hpnet.data.labelkinds import KINDS, Kind, LabelError, find_files, recognised
from hpnet.data.parsing import ParsingError, ParsingSample, read_densepose, read_pascal
from hpnet.data.photos import (
    PHOTO_SUFFIXES,
    Failure,
    PhotoError,
    find_photos,
    read_part_map,
    read_size,
    write_part_map,
    write_picture,
)
from hpnet.data.posefiles import CocoPhoto, Pose, PoseError, coco_poses, main_pose, read_coco, read_openpose
from hpnet.data.skeletons import draw_part_map
from hpnet.files import write_json
from hpnet.parts import PARTS, fold, visible_parts

FIELDS_SIZE: Final = (128, 64)  # where nothing says how large the photos are: Market-1501's
CROP_SIZE: Final = (256, 128)
RULES: Final[dict[Kind, str]] = {
    "authors": "head; torso and arms; upper legs; lower legs and feet",
    "bpbreid": fields.RULE,
    "pascal": "people of read_pascal: upright, one head, no close-ups",
    "densepose": "people of read_densepose: the authors' filter",
    "openpose": "drawn from joints with a confidence above 0",
    "coco-keypoints": "drawn from joints flagged visible; a hidden shoulder or hip counts beside its visible partner",
}
BPBREID_FOLDERS: Final = {"masks", "pifpaf", "pifpaf_maskrcnn_filtering"}
_UNUSABLE: Final = (LabelError, PhotoError, ParsingError, PoseError, fields.FieldsError)
_TOLD: Final = 20  # files named on the screen; the manifest names all
_QUALITY: Final = 95  # of crops


Drawing = Callable[[], UInt8[Tensor, "H W"]]


class Label(NamedTuple):
    """One label to import.

    Attributes:
        path: the file that holds it.
        place: its photo's path below the data set, without the suffix; the map gets the same below OUT.
        read: reads the label and gives what draws its map, or None where it says that nobody is there. In two steps,
            since a map that is there already need not be drawn again.
    """

    path: Path
    place: PurePath
    read: Callable[[], Drawing | None]


@dataclass
class Tally:
    """What became of the labels; `nobody` and `several` name places, `skipped` files and reasons."""

    maps: int = 0
    written: int = 0
    empty: int = 0
    shown: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    nobody: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    skipped: list[Failure] = field(default_factory=list)

    def count(self, part_map: UInt8[Tensor, "H W"], *, written: bool) -> None:
        """Note one map."""
        visible = visible_parts(part_map)
        self.maps += 1
        self.written += written
        self.empty += not bool(visible.any())
        self.shown = [count + int(seen) for count, seen in zip(self.shown, visible, strict=True)]

    def summary(self) -> dict[str, Any]:
        """The tally as it stands in the manifest."""
        return {
            "maps": self.maps,
            "written": self.written,
            "kept": self.maps - self.written,
            "visible": {part.name: round(self.shown[part] / max(1, self.maps), 4) for part in PARTS},
            "empty": self.empty,
            "nobody": self.nobody,
            "several": self.several,
            "skipped": [{"file": str(each.path), "reason": each.reason} for each in self.skipped],
        }


def import_labels(
    source: Path,
    out: Path,
    *,
    photos: Path | None = None,
    size: tuple[int, int] | None = None,
    kind: Literal["auto", "authors", "bpbreid", "pascal", "densepose", "openpose", "coco-keypoints"] = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Bring part labels that others have made into part maps.

    Writes a map for each label below OUT, under the label's own relative path, and OUT/manifest.json. Of Pascal-
    Person-Part and DensePose people are cut out: OUT/photos and OUT/part_maps. Maps that are there already are kept.

    Args:
        source: folder of labels (the authors' PNGs, BPBReID's .npy, OpenPose's json, Pascal-Person-Part) or a COCO
            json (keypoints or DensePose).
        out: folder for the maps.
        photos: folder of the photos, which the labels must mirror: maps get their photo's size, and labels without a
            photo or of another size are named and skipped. DensePose needs it.
        size: height and width of the maps in pixels: --size [128,64]. Without it they are as large as the labels or
            photos say; crops have 256 x 128. For OpenPose without photos it is the photos' own size.
        kind: what the labels are, if it is not recognised.
        overwrite: write again what is there already.
        json: print the manifest as JSON instead of a table.

    Returns:
        0, or 1 if a label could not be used.
    """
    _check(source, out, photos, size)
    known = recognised(source) if kind == "auto" else kind
    remark(f"{source}: {KINDS[known]}")
    begun = {"kind": known, "source": source.name, "size": size and list(size), "rule": RULES[known]}
    tally = Tally()
    if known in ("pascal", "densepose"):
        people = iter(_people(source, known, photos, size or CROP_SIZE, tally))
        first = list(islice(people, 1))  # a set that cannot be read leaves nothing behind
        if not first and not tally.skipped:
            raise LabelError(f"{source}: no person in it is labelled and upright enough")
        _begin_manifest(out / "manifest.json", begun, overwrite)
        _write_crops(chain(first, people), out, overwrite, tally)
    else:
        labels = list(_labels(source, known, _Frame.of(photos, size), tally))
        _begin_manifest(out / "manifest.json", begun, overwrite)
        _write_maps(labels, out, overwrite, tally)
    manifest = {**begun, "complete": True, **tally.summary()}
    write_json(out / "manifest.json", manifest)
    _report(manifest, out, tally, json)
    return 1 if tally.skipped else 0


def _check(source: Path, out: Path, photos: Path | None, size: tuple[int, int] | None) -> None:
    if not source.exists():
        raise LabelError(f"{source}: no such file or folder")
    if size is not None and min(size) < 1:
        raise LabelError(f"size must be a height and a width of at least 1 pixel, not {size[0]} x {size[1]}")
    if out.exists() and not out.is_dir():
        raise LabelError(f"{out}: is a file; give a folder for the maps")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise LabelError(f"{out}: lies in {source}, where maps would be taken for labels; give another folder")
    if photos is not None and not photos.is_dir():
        raise LabelError(f"{photos}: no such folder of photos")


class _Frame(NamedTuple):
    """How large a map becomes: the photos by their place, where they are given, and the size asked for."""

    photos: dict[PurePath, Path] | None
    size: tuple[int, int] | None

    @staticmethod
    def of(photos: Path | None, size: tuple[int, int] | None) -> _Frame:
        if photos is None:
            return _Frame(None, size)
        return _Frame({path.relative_to(photos).with_suffix(""): path for path in find_photos(photos)}, size)

    def photo_of(self, label: Path, place: PurePath) -> Path | None:
        if self.photos is None:
            return None
        if place not in self.photos:
            raise LabelError(f"{label}: there is no photo {place}")
        return self.photos[place]

    def photo_size(self, label: Path, place: PurePath) -> tuple[int, int] | None:
        photo = self.photo_of(label, place)
        return None if photo is None else read_size(photo)

    def checked(self, label: Path, place: PurePath, own: tuple[int, int]) -> None:
        """Raise if the photo has another size than its label says."""
        photo = self.photo_of(label, place)
        if photo is not None and (actual := read_size(photo)) != own:
            raise LabelError(
                f"{label}: {own[0]} x {own[1]} pixels, but {photo} has {actual[0]} x {actual[1]}; they must be equal"
            )

    def fitted(self, part_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "_ _"]:
        """A map at the size asked for, if any; nearest neighbour."""
        if self.size in (None, tuple(part_map.shape)):
            return part_map
        return torch.nn.functional.interpolate(part_map[None, None], self.size, mode="nearest-exact")[0, 0]


def _labels(source: Path, kind: Kind, frame: _Frame, tally: Tally) -> Iterator[Label]:
    """All labels of a source; files that cannot be read fail later, when it is their turn."""
    if kind == "coco-keypoints":
        for photo in read_coco(source):
            place = PurePath(photo.name).with_suffix("") if PurePath(photo.name).name else PurePath()
            yield Label(source, place, partial(_drawn_coco, source, photo, place, frame, tally))
        return
    suffix, endings, read = {
        "authors": (".png", (".png",), _folded),
        "bpbreid": (".npy", (".confidence_fields.npy", ".npy"), _laid_over),
        "openpose": (".json", ("_keypoints.json", ".json"), _drawn_openpose),
    }[kind]
    paths = find_files(source, suffix) if source.is_dir() else []
    if not paths:
        raise LabelError(f"{source}: holds no {suffix} files; --kind {kind} needs a folder of them")
    tops = {path.relative_to(source).parts[0] for path in paths}
    if kind == "bpbreid" and (sets := sorted(tops & BPBREID_FOLDERS)):
        raise LabelError(f"{source}: holds masks in {' and '.join(sets)}, which mirror the data set; give {sets[-1]}")
    for path, place in zip(paths, _places([path.relative_to(source) for path in paths], endings), strict=True):
        yield Label(path, place, partial(read, path, place, frame, tally))


def _places(names: list[Path], endings: tuple[str, ...]) -> list[PurePath]:
    """The photos' places by their labels' names.

    Some tools append to the photo's whole name, others to its stem. The photo's suffix is cut off only if all names
    have one: Market-1501 has photos called `x.jpg.jpg`, whose stem looks like a name.
    """
    stems = []
    for name in names:
        ending = next((each for each in endings if name.name.endswith(each) and name.name != each), name.suffix)
        stems.append(name.with_name(name.name.removesuffix(ending)))
    whole = all(stem.suffix.lower() in PHOTO_SUFFIXES for stem in stems)
    return [PurePath(stem.with_suffix("") if whole else stem) for stem in stems]


def _folded(path: Path, place: PurePath, frame: _Frame, tally: Tally) -> Drawing:
    labels = read_part_map(path)
    frame.checked(path, place, (labels.shape[0], labels.shape[1]))
    try:
        part_map = fold(labels, "authors")
    except ValueError as error:
        raise LabelError(f"{path}: {error}") from error
    return lambda: frame.fitted(part_map)


def _laid_over(path: Path, place: PurePath, frame: _Frame, tally: Tally) -> Drawing:
    size = frame.photo_size(path, place) or FIELDS_SIZE
    planes = fields.read_fields(path)
    return lambda: fields.fields_to_part_map(planes, frame.size or size)


def _drawn_openpose(path: Path, place: PurePath, frame: _Frame, tally: Tally) -> Drawing | None:
    size = frame.photo_size(path, place) or frame.size
    if size is None:
        raise LabelError(f"{path}: does not say how large its photo is; give --photos or --size")
    return _drawn(read_openpose(path), size, place, frame, tally)


def _drawn_coco(path: Path, photo: CocoPhoto, place: PurePath, frame: _Frame, tally: Tally) -> Drawing | None:
    poses = coco_poses(photo, path)
    frame.checked(path, place, photo.size)
    return _drawn(poses, photo.size, place, frame, tally)


def _drawn(poses: list[Pose], size: tuple[int, int], place: PurePath, frame: _Frame, tally: Tally) -> Drawing | None:
    """Draws the person whose crop it is."""
    if len(poses) > 1:
        tally.several.append(place.as_posix())
    pose = main_pose(poses, size)
    if pose is None:
        return None
    return lambda: frame.fitted(draw_part_map(pose.points, pose.seen, size, pose.skeleton))


def _write_maps(labels: list[Label], out: Path, overwrite: bool, tally: Tally) -> None:
    """Every label is read, so that counts and complaints are of all of them, also when a broken-off run goes on."""
    taken: dict[PurePath, Path] = {}
    for label in tracked(labels, "importing"):
        try:
            _claim(label.place, label.path, taken)
            if (drawing := label.read()) is None:
                tally.nobody.append(label.place.as_posix())
                continue
            target = out / label.place.with_name(f"{label.place.name}.png")
            written = overwrite or not target.exists()
            part_map = drawing() if written else read_part_map(target)
        except _UNUSABLE as error:
            tally.skipped.append(Failure(label.path, str(error)))
            continue
        if written:
            write_part_map(target, part_map)
        tally.count(part_map, written=written)


def _claim(place: PurePath, path: Path, taken: dict[PurePath, Path]) -> None:
    """Note whose map a place is; refuse one that is taken, or that lies elsewhere than below OUT."""
    if place.is_absolute() or ".." in place.parts or not place.name or "\0" in str(place):
        raise LabelError(f"{path}: {str(place)!r} is no path below a folder")
    if place in taken:
        raise LabelError(f"{path}: the map {place}.png is already made from {taken[place]}")
    taken[place] = path


def _people(
    source: Path, kind: Kind, photos: Path | None, size: tuple[int, int], tally: Tally
) -> Iterable[ParsingSample]:
    """The people of a set of whole photos."""
    if kind == "densepose":
        if photos is None:
            raise LabelError(f"{source}: DensePose-COCO names photos; give their folder with --photos")
        return read_densepose(source, photos, size, tally.skipped)
    if photos is not None:
        raise LabelError(f"{source}: Pascal-Person-Part brings its own photos; leave --photos out")
    splits: list[Literal["train", "val"]] = ["train", "val"]
    listed = [split for split in splits if (source / f"{split}_id.txt").is_file()] or splits[:1]
    return chain.from_iterable(read_pascal(source, split, size, tally.skipped) for split in listed)


def _write_crops(people: Iterable[ParsingSample], out: Path, overwrite: bool, tally: Tally) -> None:
    """Crops and maps of the same name; the map is written last, so that where it is, its crop is too."""
    taken: dict[PurePath, Path] = {}
    for person in tracked(people, "cutting out people"):
        photo, _, number = person.source.rpartition("#")
        stem = PurePath(photo).stem if PurePath(photo).suffix.lower() in PHOTO_SUFFIXES else photo
        place = PurePath(f"{stem}_{number}")
        try:
            _claim(place, Path(photo), taken)
        except LabelError as error:
            tally.skipped.append(Failure(Path(photo), str(error)))
            continue
        target = out / "part_maps" / f"{place}.png"
        written = overwrite or not target.exists()
        if written:
            crop = Image.fromarray(person.photo.permute(1, 2, 0).contiguous().numpy())
            write_picture(out / "photos" / f"{place}.jpg", crop, _QUALITY)
            write_part_map(target, person.part_map)
        tally.count(person.part_map, written=written)


def _begin_manifest(path: Path, begun: dict[str, Any], overwrite: bool) -> None:
    """Say at once what the folder is becoming; maps of two sources must not mix in it."""
    if path.is_file() and not overwrite:
        try:
            earlier: Any = json_format.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            earlier = None
        if not isinstance(earlier, dict) or any(earlier.get(key) != value for key, value in begun.items()):
            raise LabelError(f"{path}: the folder holds other maps; give another folder, or --overwrite")
    write_json(path, {**begun, "complete": False})


def _report(manifest: dict[str, Any], out: Path, tally: Tally, json: bool) -> None:
    tell_skipped(failure.reason for failure in tally.skipped[:_TOLD])
    if (more := len(tally.skipped) - _TOLD) > 0:
        remark(f"skipped {more} more, which {out / 'manifest.json'} names")
    if json:
        say(json_format.dumps({"out": str(out), **manifest}))
        return
    table = Table("part maps", "", title=str(out), show_header=False)
    table.add_row("maps", f"{tally.maps:,} ({tally.written:,} written now)")
    for part in PARTS:
        table.add_row(part.title, f"visible in {100 * manifest['visible'][part.name]:.1f} %")
    counts = {"no part": tally.empty, "several people": len(tally.several), "nobody, no map": len(tally.nobody)}
    for title, count in {**counts, "skipped": len(tally.skipped)}.items():
        table.add_row(title, f"{count:,}")
    say(table)
