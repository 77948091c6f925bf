"""From results to the page that a person reads: photos, part maps and per-part distances of a query and its answers.

In: an `Embedder`, a query file and the answers some search or protocol gave. Out: a `ReportQuery` for
`visualize.write_report`. Photos are looked at again, so that the page shows what the network saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpnet.data.photos import PhotoError, read_photo
from hpnet.embed import Embedder
from hpnet.parts import PARTS, Part, PartFeatures
from hpnet.visualize import ReportMatch, ReportQuery


@dataclass(frozen=True)
class Answer:
    """One entry of a ranked list.

    Attributes:
        path: its photo; a file that is gone is shown as missing.
        title: who, or which file.
        distance: to the query.
        right: the same person, another, or None if not known.
    """

    path: Path
    title: str
    distance: float
    right: bool | None = None


def report_query(
    embedder: Embedder, path: Path, answers: Sequence[Answer], *, title: str, note: str = ""
) -> ReportQuery:
    """Look at a query and its answers once more and describe them for the report.

    Raises:
        PhotoError: the query's file cannot be read.
    """
    photo = read_photo(path)
    features = embedder(photo[None])
    return ReportQuery(
        title=title,
        photo=photo,
        visible=seen_parts(features),
        matches=[_match(embedder, features, answer) for answer in answers],
        part_map=_part_map(embedder, photo),
        note=note,
    )


def seen_parts(features: PartFeatures) -> tuple[Part, ...]:
    """The parts seen in a single photo; a global descriptor sees the whole."""
    if features.visibility.shape[1] != len(PARTS):
        return PARTS
    return tuple(part for part in PARTS if bool(features.visibility[0, part]))


def part_distances(query: PartFeatures, other: PartFeatures) -> dict[Part, float]:
    """Euclidean distance of each part that two single photos both show."""
    if query.visibility.shape[1] != len(PARTS):
        return {}
    apart = (query.features[0] - other.features[0]).norm(dim=-1)
    common = query.visibility[0] & other.visibility[0]
    return {part: float(apart[part]) for part in PARTS if bool(common[part])}


def _match(embedder: Embedder, query: PartFeatures, answer: Answer) -> ReportMatch:
    try:
        photo = read_photo(answer.path)
    except PhotoError:
        return ReportMatch(f"{answer.title} (photo is gone)", answer.distance, (), right=answer.right)
    features = embedder(photo[None])
    common = query.visibility & features.visibility
    return ReportMatch(
        title=answer.title,
        distance=answer.distance,
        parts=seen_parts(PartFeatures(features.features, common)),
        photo=photo,
        part_map=_part_map(embedder, photo),
        part_distances=part_distances(query, features),
        right=answer.right,
    )


def _part_map(embedder: Embedder, photo: Tensor) -> Tensor | None:
    if embedder.model.config.baseline:
        return None
    part_map: Tensor = embedder.part_maps(photo[None])[0]
    return part_map if bool(torch.any(part_map > 0)) else None
