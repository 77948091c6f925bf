"""The verbs of finding: ask a gallery who somebody is, compare two photos.

In: photos and a gallery's folder. Out: tables, JSON, or an HTML report.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import torch
from rich.table import Table

from hpnet import weights as weights_file
from hpnet.calibration import EVEN, Calibration, calibration_of
from hpnet.console import say, tell_skipped
from hpnet.data.photos import find_photos
from hpnet.distance import Metric, Visibility, part_distance
from hpnet.embed import Embedder
from hpnet.gallery import Apart, Entry, Gallery, Match
from hpnet.parts import PARTS, Part
from hpnet.report import Answer, part_distances, report_query, seen_parts
from hpnet.visualize import ReportQuery, as_percent, write_report

Rank = Literal["distance", "probability"]

_NAMED_APART: Final = 5  # of those who cannot be compared with a query


@dataclass(frozen=True)
class _Found:
    """A query and what the gallery answered; `chances` are the matches' P(same), None without a calibration.

    `rank` is what the matches are in order of.
    """

    path: Path
    visible: tuple[Part, ...]
    matches: Sequence[Match]
    apart: Apart
    chances: Sequence[float | None]
    prior: float
    rank: Rank


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
    rank: Rank = "distance",
    prior: float | None = None,
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
        rank: what decides who comes first: the distance, or P(same), which knows that few common parts come close by
            chance. For the second the weights must be calibrated (hpnet calibrate).
        prior: how likely it is, before looking, that a given entry of the gallery is the person; by default
            1 / (entries + 1), as if one of them were, or somebody else.
        report: folder for an HTML page.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print the answers as JSON.
    """
    calibration = None
    if (metric, visibility) == ("euclidean", "common"):  # the distance that was calibrated
        calibration = calibration_of(weights_file.read_header(weights).training, weights)
    elif rank == "probability":
        raise ValueError(
            f"rank: no probability goes with {metric} and {visibility}: hpnet calibrate fits it to "
            "--metric euclidean --visibility common"
        )
    if rank == "probability" and calibration is None:
        raise ValueError(f"rank: {weights} carries no probabilities; hpnet calibrate fits them")
    if prior is not None and calibration is None:
        raise ValueError("prior: these weights tell no probabilities by this distance; see hpnet calibrate")
    embedder = Embedder(weights, device=device)
    store = Gallery.open(gallery, embedder.fingerprint)
    embedded = embedder.embed_files(find_photos(photo))
    tell_skipped(failure.reason for failure in embedded.failures)
    if not embedded.paths:
        return 2
    by = calibration if rank == "probability" else None
    found = store.search(embedded.features, k, metric, visibility, parts, filter, by)
    seen = [seen_parts(embedded.features[row]) for row in range(len(embedded.paths))]
    if visibility in ("query", "ignore"):  # these compare everybody
        apart = [Apart(0, [])] * len(found)
    else:
        apart = store.apart(embedded.features, parts, filter, _NAMED_APART)
    before = 1 / (len(store) + 1) if prior is None else prior
    chances = [_chances(calibration, matches, before) for matches in found]
    each = zip(embedded.paths, seen, found, apart, chances, strict=True)
    answers = [_Found(*answer, before, rank) for answer in each]
    if json:
        say(json_format.dumps([_as_json(answer) for answer in answers]))
    else:
        for answer in answers:
            _print_matches(answer)
    if report is not None:
        queries = [_report(embedder, store, answer, metric) for answer in answers]
        write_report(report / "report.html", f"hpnet: search in {gallery.name}", queries)
    return 1 if embedded.failures else 0


def compare(
    a: Path,
    b: Path,
    *,
    weights: Path = Path("compact"),
    threshold: float | None = None,
    prior: float | None = None,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Say whether two photos show the same person: same, different, or not comparable (no part is seen in both).

    Args:
        a: a photo.
        b: another photo.
        weights: weights file, or the name of bundled weights.
        threshold: distance below which they are the same; by default the one at which it is as likely as not, by the
            parts that both show; of weights without probabilities the one measured when they were trained.
        prior: how likely it is before looking; by default 0.5. Only weights with probabilities take one.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print the answer as JSON.
    """
    training = weights_file.read_header(weights).training
    calibration = calibration_of(training, weights)
    if threshold is None and calibration is None and training.get("same_below") is None:
        raise ValueError(f"{weights}: no threshold was measured for these weights; give --threshold")
    if prior is not None and calibration is None:
        raise ValueError("prior: these weights tell no probabilities; see hpnet calibrate")
    before = EVEN if prior is None else prior
    embedder = Embedder(weights, device=device)
    one, other = embedder(a), embedder(b)
    distance = float(part_distance(one, other))
    common = (one.visibility & other.visibility)[0].nonzero()[:, 0].tolist()
    chance = None if calibration is None else calibration.probability(distance, common, before)
    if threshold is None and calibration is not None:
        limit = calibration.threshold(common, before)
        same = chance is not None and chance > EVEN
    else:
        limit = training["same_below"] if threshold is None else threshold
        same = distance < limit
    verdict = "not comparable" if distance == torch.inf else "same" if same else "different"
    by_part = {part.title: round(value, 4) for part, value in part_distances(one, other).items()}
    answer: dict[str, Any] = {
        "verdict": verdict,
        "distance": None if distance == torch.inf else round(distance, 4),
        "threshold": None if limit is None else round(limit, 4),
        "parts": by_part,
    }
    if calibration is not None:
        answer |= {"probability": None if chance is None else round(chance, 4), "prior": before}
    if json:
        say(json_format.dumps(answer))
        return 0
    compared = ", ".join(f"{title} {value:.3f}" for title, value in by_part.items()) or "no part is seen in both"
    sure = "" if chance is None else f"P(same) {as_percent(chance)}, "
    below = "" if limit is None else f", the same below {limit:.3f}"
    say(verdict if distance == torch.inf else f"{verdict}: {sure}distance {distance:.3f}{below}")
    say(f"compared: {compared}")
    return 0


def _chances(calibration: Calibration | None, matches: Sequence[Match], prior: float) -> list[float | None]:
    if calibration is None:
        return [None] * len(matches)
    return [calibration.probability(match.distance, match.parts, prior) for match in matches]


def _report(embedder: Embedder, store: Gallery, found: _Found, metric: Metric) -> ReportQuery:
    """The page's entry; its bars are of what the gallery holds, which a template's best view is not."""
    stored = store.fetch([match.id for match in found.matches]) if found.matches else None
    answers = [
        Answer(
            Path(match.path),
            _who(match),
            match.distance,
            probability=chance,
            stored=None if stored is None else stored[row],
            parts=match.parts,
        )
        for row, (match, chance) in enumerate(zip(found.matches, found.chances, strict=True))
    ]
    return report_query(embedder, found.path, answers, title=found.path.name, metric=metric)


def _who(person: Match | Entry) -> str:
    return Path(person.path).name if person.identity is None else f"{person.identity} ({Path(person.path).name})"


def _as_json(found: _Found) -> dict[str, Any]:
    rows = [
        {**asdict(match), "parts": [part.name for part in match.parts], "time": _plain(match.time)}
        | {"attributes": {name: _plain(value) for name, value in match.attributes.items()}}
        | ({} if chance is None else {"probability": chance, "prior": found.prior})
        for match, chance in zip(found.matches, found.chances, strict=True)
    ]
    others = [{"id": entry.id, "path": entry.path, "identity": entry.identity} for entry in found.apart.people]
    return {
        "query": str(found.path),
        "visible": [part.name for part in found.visible],
        "ranked_by": found.rank,
        "matches": rows,
        "apart": {"count": found.apart.count, "people": others},
    }


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _print_matches(found: _Found) -> None:
    matches, apart = found.matches, found.apart
    hidden = [part.title for part in PARTS if part not in found.visible]
    calibrated = any(chance is not None for chance in found.chances)
    caption = "hidden in the query: " + (", ".join(hidden) or "nothing")
    caption += f"; ranked by {'P(same)' if found.rank == 'probability' else 'distance'}"
    caption += f"; P(same) from a prior of {found.prior:.2g}" if calibrated else ""
    table = Table(title=found.path.name, caption=caption)
    for name in ("rank", "who", "distance", *(["P(same)"] if calibrated else []), "compared", "camera"):
        table.add_column(name, justify="right" if name in ("rank", "distance", "P(same)") else "left")
    for rank, (match, chance) in enumerate(zip(matches, found.chances, strict=True), start=1):
        compared = "all parts" if match.parts == PARTS else ", ".join(part.title for part in match.parts)
        camera = "" if match.camera is None else str(match.camera)
        sure = [] if not calibrated else ["" if chance is None else as_percent(chance)]
        table.add_row(str(rank), _who(match), f"{match.distance:.3f}", *sure, compared, camera)
    say(table)
    if apart.count:
        some = ", ".join(_who(entry) for entry in apart.people)
        more = ", ..." if apart.count > len(apart.people) else ""
        say(f"not comparable, for no part is seen in both: {apart.count} ({some}{more})")
    if not matches and not apart.count:
        say("nobody to compare with: the gallery is empty, or nobody in it is as the filter asks")
