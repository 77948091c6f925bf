"""What can still be seen of an occluded person: the truth that `hpnet occlude` writes down and evaluation reads.

In: pixels of each part before and after. Out: rows of truth.csv, and from the folder of an occluded test set
`OccludedQueries`: the pictures' people, and per part whether it is visible, hidden, or unsure.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from hpnet.data.occluders import SMALLEST_PART
from hpnet.data.reid import Person, named_person
from hpnet.files import written_whole
from hpnet.parts import PARTS

DATA_SET: Final = "market1501"
# Share of the person's pixels, by the part map, that are hidden: from, and at most.
SEVERITIES: Final[dict[int, tuple[float, float]]] = {1: (0.15, 0.30), 2: (0.35, 0.50), 3: (0.55, 0.70)}
HIDDEN_BELOW: Final = 0.10  # a part is hidden when less of its pixels is left
VISIBLE_FROM: Final = 0.40  # and visible from here on; in between nobody can say, and it is left out of the accuracy
MANIFEST: Final = "manifest.json"
TRUTH: Final = "truth.csv"
_COLUMNS: Final = (
    "picture", "photo", "kind", "severity", "hidden_share", "occluder", "source", "source_box",
    *(f"{part.name.lower()}_{what}" for part in PARTS for what in ("before", "left", "after")),
)  # fmt: skip
Row = dict[str, str]


class OcclusionError(ValueError):
    """A test set that cannot be made or read; the text names the file and what to do."""


@dataclass(frozen=True, eq=False)
class OccludedQueries:
    """What `hpnet occlude` wrote, row by row.

    Attributes:
        people: the pictures.
        kind: what hides the person.
        severity: (q,) 1..3.
        visible: (q, p) the part can be seen.
        sure: (q, p) false where nobody can say whether it can.
        made: everything that decided them, for result files.
    """

    people: list[Person]
    kind: list[str]
    severity: Integer[Tensor, " q"]
    visible: Bool[Tensor, "q p"]
    sure: Bool[Tensor, "q p"]
    made: dict[str, Any]

    def groups(self) -> dict[str, dict[str, Bool[Tensor, " q"]]]:
        """Which rows are of each kind, of each severity, and hide each part for sure."""
        kinds = {kind: torch.tensor([each == kind for each in self.kind]) for kind in dict.fromkeys(self.kind)}
        severities = {str(level): self.severity == level for level in SEVERITIES}
        hidden = {part.name.lower(): (self.sure & ~self.visible)[:, part] for part in PARTS}
        return {"kind": kinds, "severity": severities, "hidden part": hidden}


def part_after(before: int, left: int, pixels: int) -> bool | None:
    """Whether a part can be seen, by its pixels in the photo before and after; None where nobody can say.

    Args:
        before: pixels of the part in the photo; none means that it could not be seen before either.
        left: how many of them are left.
        pixels: of the whole photo.
    """
    if left == 0 or left < HIDDEN_BELOW * before:
        return False
    return True if left >= VISIBLE_FROM * before and before >= SMALLEST_PART * pixels else None


def part_columns(before: Sequence[int], left: Sequence[int], pixels: int) -> Row:
    """The columns of truth.csv that tell of the parts, by their pixels before and after; see `part_after`."""
    columns = {}
    for part, had, has in zip(PARTS, before, left, strict=True):
        name = part.name.lower()
        columns[f"{name}_before"] = _written(None if 0 < had < SMALLEST_PART * pixels else had > 0)
        columns[f"{name}_left"] = f"{has / had:.4f}" if had else ""
        columns[f"{name}_after"] = _written(part_after(had, has, pixels))
    return columns


def read_occluded(folder: Path, kinds: Sequence[str]) -> OccludedQueries:
    """Read what `hpnet occlude` wrote, kind by kind in the truth's order.

    Args:
        folder: its OUT.
        kinds: some of `KINDS`; others are left out.

    Raises:
        OcclusionError: the folder is none of `hpnet occlude`, lacks a kind or a picture, or its truth was changed.
    """
    manifest = read_manifest(folder)
    missing = [kind for kind in kinds if kind not in manifest["kinds"]]
    if missing:
        raise OcclusionError(f"{folder}: holds no pictures of kind {', '.join(missing)}; make them with hpnet occlude")
    by_kind = read_truth(folder / TRUTH)
    if sha256((folder / TRUTH).read_bytes()).hexdigest() != manifest["truth_sha256"]:
        raise OcclusionError(f"{folder / TRUTH}: is not the truth that {MANIFEST} names; make it anew")
    rows = [row for kind in kinds for row in by_kind[kind]]
    if gone := next((row["picture"] for row in rows if not (folder / row["picture"]).is_file()), None):
        raise OcclusionError(f"{folder / gone}: no such picture, but {TRUTH} tells of it; make its kind anew")
    after = [[row[f"{part.name.lower()}_after"] for part in PARTS] for row in rows]
    return OccludedQueries(
        people=[named_person(DATA_SET, folder / row["picture"]) for row in rows],
        kind=[row["kind"] for row in rows],
        severity=torch.tensor([int(row["severity"]) for row in rows]),
        visible=torch.tensor([[seen == "1" for seen in each] for each in after]),
        sure=torch.tensor([[seen != "" for seen in each] for each in after]),
        made={**manifest, "kinds": {kind: manifest["kinds"][kind] for kind in kinds}},
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """What decided the pictures in a folder. Raises OcclusionError if `hpnet occlude` did not write it."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OcclusionError(f"{path}: no such file; give the folder that hpnet occlude wrote") from error
    except ValueError as error:
        raise OcclusionError(f"{path}: not a manifest of hpnet occlude ({error})") from error
    if not isinstance(manifest, dict) or not {"seed", "data_set", "query", "train", "rule", "kinds"} <= manifest.keys():
        raise OcclusionError(f"{path}: not a manifest of hpnet occlude")
    return manifest


def write_truth(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Write the rows of all kinds, sorted by picture."""
    ordered = sorted((row for of_kind in rows.values() for row in of_kind), key=lambda row: row["picture"])
    with written_whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def read_truth(path: Path) -> dict[str, list[Row]]:
    """The rows of each kind. Raises OcclusionError if the file is missing or no such table."""
    if not path.is_file():
        raise OcclusionError(f"{path}: no such file; make the pictures anew with hpnet occlude")
    rows: dict[str, list[Row]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise OcclusionError(f"{path}: has other columns than hpnet occlude writes; make it anew")
        for row in reader:
            rows.setdefault(row["kind"], []).append(row)
    return rows


def _written(seen: bool | None) -> str:
    return "" if seen is None else str(int(seen))
