"""Why two rankings of the same features differ: how many parts do first answers share with their queries?

In: the folder in which `hpnet evaluate --protocol market1501` cached its features, and Market-1501. Out: a JSON file:
how many parts first answers, right and wrong, have in common with the queries on which all parts are visible.

    python benchmarks/first_answers.py RUN/evaluate --root data/Market-1501-v15.09.15
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jsonargparse import auto_cli
from torch import Tensor

from hpnet.console import remark
from hpnet.data.reid import JUNK, Person, read_split
from hpnet.distance import common_part_count, part_distance
from hpnet.embed import read_features
from hpnet.evaluation.protocols import PROTOCOLS, masks
from hpnet.files import write_json
from hpnet.parts import PARTS, PartFeatures

RANKINGS: Final = {"Eq. 1": PROTOCOLS["market1501"], "authors'": PROTOCOLS["market1501-authors"]}


def main(features: Path, *, root: Path, out: Path | None = None) -> int:
    """Count the parts that first answers share with wholly visible queries.

    Args:
        features: folder with the cached features of one model, `features-*.npz`.
        root: folder of Market-1501.
        out: JSON file to write; by default first_answers.json beside the features.
    """
    people = [read_split("market1501", root, split) for split in ("query", "gallery")]
    people[1] = [person for person in people[1] if person.identity != JUNK]
    known = [cached(features, [person.path.relative_to(root).as_posix() for person in each]) for each in people]
    if known[0][1] != known[1][1]:
        raise ValueError(f"{features}: queries and gallery were seen by different weights")
    query, gallery = (each for each, _ in known)
    record = {"protocol": "market1501", "weights": {"fingerprint": known[0][1]}, **counted(people, query, gallery)}
    place = out or features / "first_answers.json"
    write_json(place, record)
    remark(f"written: {place}")
    return 0


def cached(folder: Path, photos: list[str]) -> tuple[PartFeatures, str]:
    """Features of just these photos, and the fingerprint of the weights that saw them."""
    for path in sorted(folder.glob("features-*.npz")):
        seen, names, fingerprint = read_features(path)
        if names == photos:
            return seen, fingerprint
    raise ValueError(f"{folder}: no cached features of these {len(photos)} photos; evaluate by market1501 first")


def counted(people: Sequence[Sequence[Person]], query: PartFeatures, gallery: PartFeatures) -> dict[str, Any]:
    """The record, without where it came from; shares in percent.

    Args:
        people: who is on the query photos, and on the gallery's.
        query, gallery: what was seen of them.
    """
    match, ignore = masks(*people)
    common = common_part_count(query.visibility, gallery.visibility)
    whole = query.visibility.all(1)
    rows = torch.arange(len(common))
    rankings = {}
    for name, row in RANKINGS.items():
        distance = part_distance(query, gallery, row.metric, row.visibility).masked_fill(ignore, torch.inf)
        first = distance.argmin(1)
        right, shared = match[rows, first], common[rows, first]
        rankings[name] = {
            "right": _shares(shared[whole & right]),
            "wrong": _shares(shared[whole & ~right]),
        }
    seen = gallery.visibility.sum(1)
    return {
        "wholly_visible_queries": int(whole.sum()),
        "gallery_percent_by_visible_parts": _shares(seen)["percent_by_common_parts"],
        "rankings": rankings,
    }


def _shares(parts: Tensor) -> dict[str, Any]:
    counts = torch.bincount(parts.long(), minlength=len(PARTS) + 1)
    shares = (100 * counts / max(1, len(parts))).tolist()
    return {"queries": len(parts), "percent_by_common_parts": {str(number): each for number, each in enumerate(shares)}}


if __name__ == "__main__":
    try:
        sys.exit(auto_cli(main, as_positional=True))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
