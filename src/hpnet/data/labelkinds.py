"""Which labels are these: recognises by content what others have made.

In: a file or a folder. Out: one of the kinds that `labels.py` can import, or one line that says what was found instead.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch

from hpnet.data.fields import FieldsError, read_fields
from hpnet.data.photos import PhotoError, read_part_map
from hpnet.data.posefiles import PoseError, read_json
from hpnet.parts import FOLDINGS, PARTS, PIXEL_IGNORED

Kind = Literal["authors", "bpbreid", "pascal", "densepose", "openpose", "coco-keypoints"]
KINDS: Final[dict[Kind, str]] = {
    "authors": "part labels of HPNet's authors (PNG, labels 0..7)",
    "bpbreid": "confidence fields of BPBReID or KPR (.npy, 36 planes)",
    "pascal": "Pascal-Person-Part (whole photos; people are cut out)",
    "densepose": "DensePose-COCO (whole photos; people are cut out)",
    "openpose": "joints by OpenPose (json)",
    "coco-keypoints": "joints in COCO's format (json)",
}
_AUTHORS_ALONE: Final = len(FOLDINGS["authors"]) - 1  # their label 7, foot; Pascal-Person-Part ends at 6
_FILES_TRIED: Final = 20  # that many damaged files in front do not hide what a folder holds


class LabelError(ValueError):
    """Labels that cannot be imported; the text names the file or folder and what to do."""


def find_files(folder: Path, suffix: str) -> list[Path]:
    """All files below a folder with this suffix, sorted; hidden files and folders are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() == suffix and path.is_file())
    return sorted(path for path in found if not any(name.startswith(".") for name in path.relative_to(folder).parts))


def recognised(source: Path) -> Kind:
    """The kind of labels in a file or folder.

    Raises:
        LabelError: missing, empty, ambiguous, or nothing that is known.
    """
    if source.is_file():
        return _kind_of_file(source)
    if not source.is_dir():
        raise LabelError(f"{source}: no such file or folder")
    if (source / "part_masks").is_dir() and (source / "JPEGImages").is_dir():
        return "pascal"
    reasons = []
    for suffix, kind_of in _KIND_OF_FOLDER.items():
        if paths := find_files(source, suffix):
            try:
                return kind_of(paths)
            except LabelError as error:
                reasons.append(str(error))
    raise LabelError(f"{source}: {'; '.join(reasons) or 'holds no labels: neither .npy nor .json nor .png files'}")


def _kind_of_file(path: Path) -> Kind:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/points14.npy") for name in archive.namelist()):
                raise LabelError(f"{path}: a keypoint file: use `hpnet keypoints-to-parts {path} OUT`")
        raise LabelError(f"{path}: an archive: unpack it and give the folder")
    if path.suffix.lower() in (".npy", ".png"):
        raise LabelError(f"{path}: a single label: give the folder it lies in")
    try:
        content = read_json(path)
    except PoseError as error:
        raise LabelError(str(error)) from error
    if isinstance(content, dict) and isinstance(content.get("people"), list):
        raise LabelError(f"{path}: one photo's file of OpenPose: give the folder it lies in")
    annotations = content.get("annotations") if isinstance(content, dict) else None
    entries = [entry for entry in annotations if isinstance(entry, dict)] if isinstance(annotations, list) else []
    if any(entry.get("dp_masks") for entry in entries):
        return "densepose"
    if any(entry.get("keypoints") for entry in entries):
        return "coco-keypoints"
    raise LabelError(f"{path}: a json without labels that are known: {_outline(content)}")


def _kind_of_arrays(paths: Sequence[Path]) -> Kind:
    reasons = []
    for path in paths[:_FILES_TRIED]:
        try:
            read_fields(path)
        except FieldsError as error:
            reasons.append(str(error))
        else:
            return "bpbreid"
    raise LabelError(f"{len(paths)} .npy files, but no confidence fields: {reasons[0]}")


def _kind_of_jsons(paths: Sequence[Path]) -> Kind:
    reasons = []
    for path in paths[:_FILES_TRIED]:
        try:
            content = read_json(path)
        except PoseError as error:
            reasons.append(str(error))
            continue
        if isinstance(content, dict) and isinstance(content.get("people"), list):
            return "openpose"
        known = isinstance(content, dict) and "annotations" in content
        reasons.append(f"{path}: annotations: give this file itself" if known else f"{path}: {_outline(content)}")
    raise LabelError(f"{len(paths)} .json files, but not OpenPose's: {reasons[0]}")


def _kind_of_pictures(paths: Sequence[Path]) -> Kind:
    """Tells the authors' labels by their largest one, which no other labelling has; reads all files if need be."""
    largest, reasons = 0, []
    for path in paths:
        try:
            labels = read_part_map(path)
        except PhotoError as error:
            reasons.append(str(error))
            continue
        highest = int(torch.where(labels == PIXEL_IGNORED, 0, labels).max())
        if highest == _AUTHORS_ALONE:
            return "authors"
        largest = max(largest, highest)
    if len(reasons) == len(paths):
        raise LabelError(f"{len(paths)} .png files, but no label maps: {reasons[0]}")
    if largest > _AUTHORS_ALONE:
        raise LabelError(f"label maps with labels up to {largest}, which no labelling known here has")
    if largest > len(PARTS):
        raise LabelError(
            f"label maps with labels up to {largest}: give the folder of the whole set if they are the masks of "
            "Pascal-Person-Part; say --kind authors if they are those of HPNet's authors"
        )
    raise LabelError(
        "label maps without a label above 4: if they are part maps, use them as they are; "
        "say --kind authors if they are labels of HPNet's authors"
    )


def _outline(content: Any) -> str:
    """A json's outermost shape, in a few words."""
    if isinstance(content, dict):
        return f"an object with {', '.join(map(repr, list(content)[:6])) or 'nothing in it'}"
    return f"a {type(content).__name__}" + (f" of {len(content)}" if isinstance(content, list) else "")


# In this order: a folder of part maps also holds manifest.json, a data set with masks also holds pictures.
_KIND_OF_FOLDER: Final[dict[str, Callable[[Sequence[Path]], Kind]]] = {
    ".npy": _kind_of_arrays,
    ".json": _kind_of_jsons,
    ".png": _kind_of_pictures,
}
