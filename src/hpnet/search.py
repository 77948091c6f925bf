"""The verbs of finding: put photos into a gallery, ask who somebody is, compare two photos.

In: photos and a gallery's folder. Out: tables, JSON, or an HTML report.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table

from hpnet import weights as weights_file
from hpnet.console import say, tell_skipped
from hpnet.data.photos import Failure, find_photos
from hpnet.data.reid import Person, read_folder, read_table
from hpnet.distance import Metric, Visibility, part_distance
from hpnet.embed import Embedder
from hpnet.gallery import Gallery, Match
from hpnet.parts import PARTS, Part
from hpnet.report import Answer, part_distances, report_query, seen_parts
from hpnet.visualize import ReportQuery, write_report

_PHOTOS_AT_ONCE: Final = 4096  # added in one commit: little is lost when a long run is stopped


def add(
    photos: Path,
    *,
    gallery: Path,
    weights: Path = Path("compact"),
    batch_size: int = 32,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Put photos of people into a gallery; it is made if it does not exist.

    Args:
        photos: a folder, searched with all below it; one photo; or a CSV with columns path, identity, camera.
        gallery: the gallery's folder.
        weights: weights file, or the name of bundled weights; a gallery holds features of one kind of weights only.
        batch_size: photos that go through the network together.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print what was done as JSON.
    """
    people = read_table(photos) if photos.suffix.lower() == ".csv" else read_folder(photos)
    embedder = Embedder(weights, device=device, batch_size=batch_size)
    store = (
        Gallery.open(gallery, embedder.fingerprint)
        if gallery.exists()
        else Gallery.create(gallery, embedder.fingerprint)
    )
    failures: list[Failure] = []
    for start in range(0, len(people), _PHOTOS_AT_ONCE):
        failures.extend(_add_some(store, embedder, people[start : start + _PHOTOS_AT_ONCE]))
    tell_skipped(failure.reason for failure in failures)
    added = len(people) - len(failures)
    summary = {"added": added, "skipped": len(failures), "people": len(store), "gallery": str(gallery)}
    say(json_format.dumps(summary) if json else f"{added} added, {len(failures)} skipped; {gallery} holds {len(store)}")
    return 1 if failures else 0


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
    if json:
        say(json_format.dumps([_as_json(*each) for each in zip(embedded.paths, seen, found, strict=True)]))
    else:
        for path, visible, matches in zip(embedded.paths, seen, found, strict=True):
            _print_matches(path, visible, matches)
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


def _add_some(store: Gallery, embedder: Embedder, people: Sequence[Person]) -> tuple[Failure, ...]:
    embedded = embedder.embed_files([person.path for person in people], progress="embedding")
    by_path = {person.path: person for person in people}
    read = [by_path[path] for path in embedded.paths]
    if read:
        store.add(
            embedded.features,
            [str(path.resolve()) for path in embedded.paths],
            cameras=[person.camera for person in read],
            identities=[person.identity for person in read],
        )
    return embedded.failures


def _report(embedder: Embedder, path: Path, matches: Sequence[Match]) -> ReportQuery:
    answers = [Answer(Path(match.path), _who(match), match.distance) for match in matches]
    return report_query(embedder, path, answers, title=path.name)


def _who(match: Match) -> str:
    return Path(match.path).name if match.identity is None else f"{match.identity} ({Path(match.path).name})"


def _as_json(path: Path, visible: tuple[Part, ...], matches: Sequence[Match]) -> dict[str, Any]:
    rows = [{**asdict(match), "parts": [part.name for part in match.parts]} for match in matches]
    for row in rows:
        row["time"] = None if row["time"] is None else str(row["time"])
    return {"query": str(path), "visible": [part.name for part in visible], "matches": rows}


def _print_matches(path: Path, visible: tuple[Part, ...], matches: Sequence[Match]) -> None:
    hidden = [part.title for part in PARTS if part not in visible]
    table = Table(title=path.name, caption="hidden in the query: " + (", ".join(hidden) or "nothing"))
    for name in ("rank", "who", "distance", "compared", "camera"):
        table.add_column(name, justify="right" if name in ("rank", "distance") else "left")
    for rank, match in enumerate(matches, start=1):
        compared = ", ".join(part.title for part in match.parts)
        camera = "" if match.camera is None else str(match.camera)
        table.add_row(str(rank), _who(match), f"{match.distance:.3f}", compared, camera)
    say(table)
    if not matches:
        say("nobody in the gallery shows a part that the query shows")
