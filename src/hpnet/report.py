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

from hpnet.data.footage import read_view
from hpnet.data.photos import PhotoError
from hpnet.distance import Metric
from hpnet.embed import Embedder
from hpnet.parts import PARTS, Part, PartFeatures
from hpnet.visualize import ReportMatch, ReportQuery


@dataclass(frozen=True)
class Answer:
    """One entry of a ranked list.

    Attributes:
        path: its photo, or its address in footage (`read_view`); what is gone is shown as missing.
        title: who, or which file.
        distance: to the query.
        right: the same person, another, or None if not known.
        probability: that it is the same person; None if the weights do not tell.
        stored: what the gallery holds of it, a template of several views perhaps; None: what the photo shows.
        parts: those compared; None: all that both show.
    """

    path: Path
    title: str
    distance: float
    right: bool | None = None
    probability: float | None = None
    stored: PartFeatures | None = None
    parts: tuple[Part, ...] | None = None


def report_query(
    embedder: Embedder,
    path: Path,
    answers: Sequence[Answer],
    *,
    title: str,
    note: str = "",
    metric: Metric = "euclidean",
) -> ReportQuery:
    """Look at a query and its answers once more and describe them for the report; bars are in the metric's unit.

    Raises:
        PhotoError: the query's file cannot be read.
    """
    shown = [read_view(path), *(_photo_or_none(answer.path) for answer in answers)]
    # One pass of the network for the whole list; a photo that is gone leaves a gap.
    present = [number for number, photo in enumerate(shown) if photo is not None]
    paths = [path, *(answer.path for answer in answers)]
    features, maps = embedder.describe(torch.stack([read_view(paths[n], embedder.model.config.size) for n in present]))
    seen = {number: (features[row], None if maps is None else maps[row]) for row, number in enumerate(present)}
    matches = [_match(seen[0][0], answer, shown[n], seen.get(n), metric) for n, answer in enumerate(answers, start=1)]
    assert shown[0] is not None
    return ReportQuery(title, shown[0], seen_parts(seen[0][0]), matches, seen[0][1], note)


def seen_parts(features: PartFeatures) -> tuple[Part, ...]:
    """The parts seen in a single photo; a global descriptor sees the whole."""
    if features.visibility.shape[1] != len(PARTS):
        return PARTS
    return tuple(part for part in PARTS if bool(features.visibility[0, part]))


def part_distances(query: PartFeatures, other: PartFeatures, metric: Metric = "euclidean") -> dict[Part, float]:
    """Distance of each part that two single photos both show."""
    if query.visibility.shape[1] != len(PARTS):
        return {}
    apart = (query.features[0] - other.features[0]).norm(dim=-1)
    apart = apart if metric == "euclidean" else apart.square() / 2  # of unit vectors: 1 - cos
    common = query.visibility[0] & other.visibility[0]
    return {part: float(apart[part]) for part in PARTS if bool(common[part])}


def _match(
    query: PartFeatures,
    answer: Answer,
    photo: Tensor | None,
    seen: tuple[PartFeatures, Tensor | None] | None,
    metric: Metric,
) -> ReportMatch:
    features, part_map = seen or (None, None)
    compared = answer.stored or features
    parts: tuple[Part, ...] = ()
    bars: dict[Part, float] = {}
    if compared is not None:
        common = seen_parts(PartFeatures(compared.features, query.visibility & compared.visibility))
        parts = common if answer.parts is None else answer.parts
        bars = {part: far for part, far in part_distances(query, compared, metric).items() if part in parts}
    return ReportMatch(
        title=answer.title if seen else f"{answer.title} (photo is gone)",
        distance=answer.distance,
        parts=parts,
        photo=photo,
        part_map=part_map,
        part_distances=bars,
        right=answer.right,
        probability=answer.probability,
    )


def _photo_or_none(path: Path) -> Tensor | None:
    try:
        return read_view(path)
    except PhotoError:
        return None
