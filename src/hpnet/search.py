"""The verbs of finding: ask a gallery who somebody is, compare two photos.

In: photos and a gallery's folder. Out: tables, JSON, or an HTML report.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table

from hpnet import weights as weights_file
from hpnet.console import say, tell_skipped
from hpnet.data.photos import find_photos
from hpnet.distance import Metric, Visibility, part_distance
from hpnet.embed import Embedder
from hpnet.gallery import Apart, Entry, Gallery, Match
from hpnet.parts import PARTS, Part
from hpnet.report import Answer, part_distances, report_query, seen_parts
from hpnet.visualize import ReportQuery, write_report

_NAMED_APART: Final = 5  # of those who cannot be compared with a query


def search(
    photo: Path,
    *,
    gallery: Path,
    k: int = 10,
    weights: Path = Path("compact"),
    metric: Metric = "euclidean",
    visibility: Visibility = "common",
    parts: list[str] | None = None,
    filter: str | None = None,  # noqa: A002  (the word of the gallery's door)
    report: Path | None = None,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Ask a gallery who somebody is.

    Args:
        photo: the query, or a folder of queries.
        gallery: the gallery's folder.
        k: answers per query.
        weights: those the gallery was made with.
        metric: how a part is compared.
        visibility: which parts count.
        parts: compare only these, such as [UPPER_LEGS,LOWER_LEGS].
        filter: a condition on the people asked about, such as "camera = 2".
        report: folder for an HTML page.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print the answers as JSON.
    """
    embedder = Embedder(weights, device=device)
    store = Gallery.open(gallery, embedder.fingerprint)
    embedded = embedder.embed_files(find_photos(photo))
    tell_skipped(failure.reason for failure in embedded.failures)
    if not embedded.paths:
        return 2
    found = store.search(embedded.features, k=k, metric=metric, visibility=visibility, parts=parts, filter=filter)
    seen = [seen_parts(embedded.features[row]) for row in range(len(embedded.paths))]
    if visibility in ("query", "ignore"):  # these compare everybody
        apart = [Apart(0, [])] * len(found)
    else:
        apart = store.apart(embedded.features, parts, filter, _NAMED_APART)
    answers = list(zip(embedded.paths, seen, found, apart, strict=True))
    if json:
        say(json_format.dumps([_as_json(*answer) for answer in answers]))
    else:
        for answer in answers:
            _print_matches(*answer)
    if report is not None:
        queries = [_report(embedder, path, matches) for path, matches in zip(embedded.paths, found, strict=True)]
        write_report(report / "report.html", f"hpnet: search in {gallery.name}", queries)
    return 1 if embedded.failures else 0


def compare(
    a: Path,
    b: Path,
    *,
    weights: Path = Path("compact"),
    threshold: float | None = None,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Say whether two photos show the same person: same, different, or not comparable (no part is seen in both).

    Args:
        a: a photo.
        b: another photo.
        weights: weights file, or the name of bundled weights.
        threshold: distance below which they are the same; by default the one measured when the weights were trained.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print the answer as JSON.
    """
    if threshold is None:
        threshold = weights_file.read_header(weights).training.get("same_below")
    if threshold is None:
        raise ValueError(f"{weights}: no threshold was measured for these weights; give --threshold")
    embedder = Embedder(weights, device=device)
    one, other = embedder(a), embedder(b)
    distance = float(part_distance(one, other))
    verdict = "not comparable" if distance == torch.inf else "same" if distance < threshold else "different"
    by_part = {part.title: round(value, 4) for part, value in part_distances(one, other).items()}
    answer = {
        "verdict": verdict,
        "distance": None if distance == torch.inf else round(distance, 4),
        "threshold": round(threshold, 4),
        "parts": by_part,
    }
    if json:
        say(json_format.dumps(answer))
        return 0
    compared = ", ".join(f"{title} {value:.3f}" for title, value in by_part.items()) or "no part is seen in both"
    say(verdict if distance == torch.inf else f"{verdict}: distance {distance:.3f}, the same below {threshold:.3f}")
    say(f"compared: {compared}")
    return 0


def _report(embedder: Embedder, path: Path, matches: Sequence[Match]) -> ReportQuery:
    answers = [Answer(Path(match.path), _who(match), match.distance) for match in matches]
    return report_query(embedder, path, answers, title=path.name)


def _who(person: Match | Entry) -> str:
    return Path(person.path).name if person.identity is None else f"{person.identity} ({Path(person.path).name})"


def _as_json(path: Path, visible: tuple[Part, ...], matches: Sequence[Match], apart: Apart) -> dict[str, Any]:
    rows = [
        {**asdict(match), "parts": [part.name for part in match.parts], "time": _plain(match.time)}
        | {"attributes": {name: _plain(value) for name, value in match.attributes.items()}}
        for match in matches
    ]
    others = [{"id": entry.id, "path": entry.path, "identity": entry.identity} for entry in apart.people]
    return {
        "query": str(path),
        "visible": [part.name for part in visible],
        "matches": rows,
        "apart": {"count": apart.count, "people": others},
    }


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _print_matches(path: Path, visible: tuple[Part, ...], matches: Sequence[Match], apart: Apart) -> None:
    hidden = [part.title for part in PARTS if part not in visible]
    table = Table(title=path.name, caption="hidden in the query: " + (", ".join(hidden) or "nothing"))
    for name in ("rank", "who", "distance", "compared", "camera"):
        table.add_column(name, justify="right" if name in ("rank", "distance") else "left")
    for rank, match in enumerate(matches, start=1):
        compared = "all parts" if match.parts == PARTS else ", ".join(part.title for part in match.parts)
        camera = "" if match.camera is None else str(match.camera)
        table.add_row(str(rank), _who(match), f"{match.distance:.3f}", compared, camera)
    say(table)
    if apart.count:
        some = ", ".join(_who(entry) for entry in apart.people)
        more = ", ..." if apart.count > len(apart.people) else ""
        say(f"not comparable, for no part is seen in both: {apart.count} ({some}{more})")
    if not matches and not apart.count:
        say("nobody to compare with: the gallery is empty, or nobody in it is as the filter asks")
