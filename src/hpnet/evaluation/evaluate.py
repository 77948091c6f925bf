"""Judge weights by a protocol: print as the papers print, and write down everything that decided the numbers.

In: weights, a protocol's name, the data set's folder. Out: a table, `scores.json`, and cached features beside it, so
that another distance on the same photos costs no second pass.
"""

from __future__ import annotations

import hashlib
import json as json_format
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, get_args

import torch
from jaxtyping import Bool, Float, Int64
from rich.table import Table
from torch import Tensor

from hpnet import weights as weights_file
from hpnet.calibration import Calibration, calibration_of
from hpnet.console import remark, say
from hpnet.data.reid import JUNK, Person, data_hash, hold_out, read_split
from hpnet.data.truth import OccludedQueries, read_occluded
from hpnet.distance import Metric, Visibility, common_part_count, part_distance
from hpnet.embed import Embedder, read_features, write_features
from hpnet.evaluation.decisions import Decisions, Pairs, decide
from hpnet.evaluation.metrics import RANKS, QueryScores, Scores, percent, score_queries
from hpnet.evaluation.protocols import Protocol, find_protocol, masks, numbered, one_per_identity
from hpnet.evaluation.visibility import ACCURACY, VisibilityAccuracy, accuracy_by_part
from hpnet.files import sha256_of, write_json
from hpnet.parts import PartFeatures
from hpnet.report import Answer, report_query
from hpnet.visualize import ReportTable, write_report

_PRINTED: Final = (*(f"R{rank}" for rank in RANKS), "mAP", "mINP")
_REPORT_QUERIES: Final = 20
_REPORT_ANSWERS: Final = 10

Groups = Mapping[str, Mapping[str, Bool[Tensor, " q"]]]


@dataclass(frozen=True)
class Side:
    """Queries or gallery: who, and what was seen of them, row by row."""

    people: Sequence[Person]
    features: PartFeatures


@dataclass(frozen=True)
class Judgement:
    """The outcome of a protocol.

    Attributes:
        mean: scores; averaged over the trials where there are several.
        deviation: standard deviation over the trials, by printed name; empty for a single trial.
        by_common_parts: scores of the queries whose right answers show at most so many parts in common with them.
        without_common_part: pairs that could not be compared, as a share of those that count.
        by_group: scores of the groups of queries that were asked for, by what divides them and by group.
    """

    mean: Scores
    deviation: dict[str, float]
    by_common_parts: dict[int, Scores]
    without_common_part: float
    by_group: dict[str, dict[str, Scores]] = field(default_factory=dict)


def pairs_of(protocol: Protocol, query: Side, gallery: Side) -> Pairs:
    """Distances by the protocol, and which pairs match and count."""
    distance = part_distance(query.features, gallery.features, protocol.metric, protocol.visibility)
    match, ignore = masks(query.people, gallery.people)
    return Pairs(distance, match, ignore, query.features.visibility, gallery.features.visibility)


def judge(
    protocol: Protocol,
    query: Side,
    gallery: Side,
    *,
    seed: int = 0,
    groups: Groups | None = None,
    pairs: Pairs | None = None,
) -> Judgement:
    """Rank the gallery for every query and score it by the protocol's rules.

    Args:
        protocol: the rules.
        query, gallery: who was seen; gallery without junk or with it, it does not count either way.
        seed: of the single-gallery-shot trials.
        groups: queries to score by themselves too; a group without a valid query has no scores.
        pairs: what `pairs_of` gave, if it is known already.

    Raises:
        ValueError: no query has a right answer.
    """
    pairs = pairs or pairs_of(protocol, query, gallery)
    match, ignore = pairs.match, pairs.ignore
    if not bool((match & ~ignore).any()):
        raise ValueError("no query has a right answer in the gallery: check the data set's identities and cameras")
    common = common_part_count(query.features.visibility, gallery.features.visibility)
    trials = [
        score_queries(pairs.distance, match, hidden, protocol.ap, protocol.ties)
        for hidden in _trials(protocol, ignore, gallery.people, seed)
    ]
    means = [trial.mean() for trial in trials]
    most = common.masked_fill(~match | ignore, -1).amax(1).int()
    return Judgement(
        mean=_mean_of(means),
        deviation=_deviation_of(means) if len(means) > 1 else {},
        by_common_parts=_by_common_parts(trials, most),
        without_common_part=float(((common == 0) & ~ignore).sum() / (~ignore).sum()),
        by_group={what: _by_group(trials, members) for what, members in (groups or {}).items()},
    )


def evaluate(
    weights: Path,
    *,
    protocol: str,
    root: Path,
    occluded: Path | None = None,
    distance: str | None = None,
    out: Path | None = None,
    report: Path | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Judge weights by one of the field's protocols.

    Args:
        weights: weights file, or the name of bundled weights.
        protocol: a row of hpnet.evaluation.protocols, such as market1501 or occluded_reid-authors.
        root: folder of the data set.
        occluded: folder that hpnet occlude wrote; the market1501-occluded protocols take their queries from it.
        distance: METRIC+VISIBILITY instead of the protocol's own, such as euclidean+ignore (Table 4, test w/o vis).
        out: folder for scores.json and cached features; by default evaluate/PROTOCOL beside the weights file.
        report: folder for an HTML page with ranked lists of some queries.
        seed: of the single-gallery-shot trials.
        batch_size: photos that go through the network together.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print the scores as JSON.
    """
    row = _with_distance(find_protocol(protocol), distance)
    truth = _truth(row, occluded)
    embedder = Embedder(weights, device=device, batch_size=batch_size)
    folder = out or _default_folder(weights, row, distance)
    query, gallery = _people(row, root, truth)
    # By default every protocol of these weights finds the features that another one left.
    cache = out or folder.parent
    roots = (occluded or root, root)
    sides = _seen(embedder, query, roots[0], cache), _seen(embedder, gallery, roots[1], cache)
    pairs = pairs_of(row, *sides)
    judgement = judge(row, *sides, seed=seed, groups=None if truth is None else truth.groups(), pairs=pairs)
    decisions = _decisions(row, pairs, sides, weights, seed)
    accuracy = {} if truth is None else accuracy_by_part(sides[0].features.visibility, truth.visible, truth.sure)
    record = _record(row, judgement, sides, embedder, roots, seed) | decisions.as_record()
    record["weights"]["sha256"] = sha256_of(weights_file.locate(weights))
    if truth is not None:
        record["occlusion"] = _occlusion_record(judgement, accuracy, truth)
    write_json(folder / "scores.json", record)
    tables = _tables(row, judgement, sides, accuracy) + decisions.tables(judgement.mean)
    if json:
        say(json_format.dumps(record))
    else:
        for table in tables:
            say(_printed(table))
        remark(f"written: {folder / 'scores.json'}")
    if report is not None:
        _write_report(report / "report.html", row, tables, sides, embedder)
        remark(f"look at {report / 'report.html'}")
    return 0


def ranked(
    protocol: Protocol, query: Side, gallery: Side, row: int, k: int
) -> tuple[Float[Tensor, " k"], Int64[Tensor, " k"]]:
    """Distances and gallery rows of one query's first k answers that count, infinitely far ones left out."""
    distance = part_distance(query.features[row], gallery.features, protocol.metric, protocol.visibility)[0]
    _, ignore = masks([query.people[row]], gallery.people)
    distance = distance.masked_fill(ignore[0], torch.inf)
    nearest, rows = distance.topk(min(k, len(distance)), largest=False)
    return nearest[nearest < torch.inf], rows[nearest < torch.inf]


def _decisions(row: Protocol, pairs: Pairs, sides: tuple[Side, Side], weights: Path, seed: int) -> Decisions:
    """How well one can decide; not by single-gallery-shot trials, whose galleries differ from query to query."""
    if row.trials:
        return Decisions(None)
    calibration: Calibration | None = None
    if (row.metric, row.visibility) == ("euclidean", "common"):  # the distance that was calibrated
        calibration = calibration_of(weights_file.read_header(weights).training, weights)
    query, gallery = ([each.identity for each in side.people] for side in sides)
    both = numbered([*query, *gallery])
    unknown = torch.tensor([each is None for each in (*query, *gallery)], dtype=torch.bool)
    numbers = both.masked_fill(unknown, -1)
    return decide(pairs, (numbers[: len(query)], numbers[len(query) :]), (row.ap, row.ties), calibration, seed)


def _trials(protocol: Protocol, ignore: Bool[Tensor, "q g"], gallery: Sequence[Person], seed: int) -> list[Tensor]:
    """What does not count, for each trial."""
    if not protocol.trials:
        return [ignore]
    identity = numbered([person.identity for person in gallery])
    generator = torch.Generator().manual_seed(seed)
    return [one_per_identity(ignore, identity, generator) for _ in range(protocol.trials)]


def _mean_of(scores: Sequence[Scores]) -> Scores:
    count = len(scores)
    return Scores(
        cmc={rank: sum(each.cmc[rank] for each in scores) / count for rank in RANKS},
        mean_ap=sum(each.mean_ap for each in scores) / count,
        mean_inp=sum(each.mean_inp for each in scores) / count,
        valid_queries=scores[0].valid_queries,
    )


def _deviation_of(scores: Sequence[Scores]) -> dict[str, float]:
    table = torch.tensor([list(percent(each).values()) for each in scores], dtype=torch.float64)
    return dict(zip(_PRINTED, table.std(0).tolist(), strict=True))


def _by_common_parts(trials: Sequence[QueryScores], most: Tensor) -> dict[int, Scores]:
    present = sorted({int(each) for each in most.tolist() if each >= 0})
    return {parts: _mean_of([trial.mean(most == parts) for trial in trials]) for parts in present}


def _by_group(trials: Sequence[QueryScores], members: Mapping[str, Bool[Tensor, " q"]]) -> dict[str, Scores]:
    scores = {name: _mean_of([trial.mean(chosen) for trial in trials]) for name, chosen in members.items()}
    return {name: mean for name, mean in scores.items() if mean.valid_queries}


def _with_distance(row: Protocol, distance: str | None) -> Protocol:
    if distance is None:
        return row
    metrics, kinds = get_args(Metric), get_args(Visibility)
    metric, _, visibility = distance.partition("+")
    if metric not in metrics or visibility not in kinds:
        raise ValueError(f"distance {distance!r}: write METRIC+VISIBILITY of {'|'.join(metrics)} and {'|'.join(kinds)}")
    return replace(row, metric=metric, visibility=visibility)  # type: ignore[arg-type]  # checked above


def _default_folder(weights: Path, row: Protocol, distance: str | None) -> Path:
    """Beside a weights file, or below the working folder for bundled weights; another distance has its own."""
    beside = weights.parent if weights.is_file() else Path()
    return beside / "evaluate" / (row.name if distance is None else f"{row.name}-{distance}")


def _truth(row: Protocol, occluded: Path | None) -> OccludedQueries | None:
    """What was occluded, for the protocols that judge by it."""
    if row.occluded and occluded is None:
        raise ValueError(f"protocol {row.name} needs --occluded, the folder that hpnet occlude wrote")
    if not row.occluded and occluded is not None:
        raise ValueError(f"protocol {row.name} takes its queries from root: leave --occluded away")
    if occluded is None:
        return None
    truth = read_occluded(occluded, row.occluded)
    if truth.made.get("held_out", 0) != row.held_out:
        wanted = f"made with --held_out {row.held_out}" if row.held_out else "of the query photos"
        raise ValueError(f"{occluded}: protocol {row.name} needs occluded copies {wanted}")
    return truth


def _people(row: Protocol, root: Path, truth: OccludedQueries | None) -> tuple[list[Person], list[Person]]:
    query, gallery = read_split(row.data_set, root, row.query), read_split(row.data_set, root, row.gallery)
    if row.held_out:
        query, gallery = hold_out(query, row.held_out)
    return truth.people if truth else query, [person for person in gallery if person.identity != JUNK]


def _seen(embedder: Embedder, people: Sequence[Person], root: Path, folder: Path) -> Side:
    """Embed people, or take their features from an earlier run with the same weights on the same files."""
    stamp = hashlib.sha256(f"{embedder.fingerprint} {data_hash(people, root)}".encode()).hexdigest()[:16]
    cache = folder / f"features-{stamp}.npz"
    names = [Path(os.path.relpath(person.path, root)).as_posix() for person in people]
    if cache.is_file():
        features, cached, fingerprint = read_features(cache)
        if cached == names and fingerprint == embedder.fingerprint:
            return Side(people, features)
    embedded = embedder.embed_files([person.path for person in people], progress=f"embedding {len(people)} photos")
    if embedded.failures:
        # Leaving queries out would change the score in silence.
        raise ValueError(f"{len(embedded.failures)} photos cannot be read: {embedded.failures[0].reason}")
    write_features(cache, embedded.features, names, embedder.fingerprint)
    return Side(people, embedded.features)


def _record(
    row: Protocol, judgement: Judgement, sides: Sequence[Side], embedder: Embedder, roots: Sequence[Path], seed: int
) -> dict[str, Any]:
    """Everything that decided the scores, and the scores."""
    rules = asdict(row)
    published = rules.pop("published")
    return {
        "scores": percent(judgement.mean),
        "valid_queries": judgement.mean.valid_queries,
        "deviation": judgement.deviation,
        "by_common_parts": {str(parts): _scores_record(scores) for parts, scores in judgement.by_common_parts.items()},
        "pairs_without_common_part": judgement.without_common_part,
        "published": published,
        "protocol": rules,
        "seed": seed,
        "weights": {"fingerprint": embedder.fingerprint, "config": asdict(embedder.model.config)},
        "data": {
            name: {
                "images": len(side.people),
                "identities": len({person.identity for person in side.people}),
                "sha256": data_hash(side.people, root),
                "images_per_visible_part": side.features.visibility.sum(0).tolist(),
            }
            for name, side, root in zip(("query", "gallery"), sides, roots, strict=True)
        },
        "versions": {
            "hpnet": metadata.version("hpnet"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(embedder.device),
        },
    }


def _scores_record(scores: Scores) -> dict[str, float]:
    return {**percent(scores), "queries": scores.valid_queries}


def _occlusion_record(
    judgement: Judgement, accuracy: Mapping[str, VisibilityAccuracy], truth: OccludedQueries
) -> dict[str, Any]:
    scores = {
        f"by_{what.replace(' ', '_')}": {name: _scores_record(each) for name, each in groups.items()}
        for what, groups in judgement.by_group.items()
    }
    return {**scores, "visibility": {name: each.as_record() for name, each in accuracy.items()}, "made": truth.made}


def _table_rows(row: Protocol, judgement: Judgement) -> list[list[str]]:
    ours = percent(judgement.mean)
    rows = [["these weights", *(_cell(ours, judgement.deviation, name) for name in _PRINTED)]]
    for parts, scores in judgement.by_common_parts.items():
        values = percent(scores)
        title = f"  {parts} parts in common ({scores.valid_queries} queries)"
        rows.append([title, *(f"{values[name]:.1f}" for name in _PRINTED)])
    for what, groups in judgement.by_group.items():
        for name, scores in groups.items():
            values = percent(scores)
            title = f"  {what} {name.replace('_', ' ')} ({scores.valid_queries} queries)"
            rows.append([title, *(f"{values[each]:.1f}" for each in _PRINTED)])
    for who, values in row.published.items():
        rows.append([f"published: {who}", *(f"{values[name]:.1f}" if name in values else "" for name in _PRINTED)])
    return rows


def _cell(values: dict[str, float], deviation: dict[str, float], name: str) -> str:
    return f"{values[name]:.1f}" + (f" ±{deviation[name]:.1f}" if deviation else "")


def _described(row: Protocol, sides: Sequence[Side], judgement: Judgement) -> str:
    return (
        f"{len(sides[0].people)} queries ({judgement.mean.valid_queries} with a right answer), "
        f"{len(sides[1].people)} gallery photos; distance {row.metric}+{row.visibility}, AP {row.ap}, ties {row.ties}"
        + (f", single-gallery-shot, {row.trials} trials" if row.trials else "")
    )


def _tables(
    row: Protocol, judgement: Judgement, sides: Sequence[Side], accuracy: Mapping[str, VisibilityAccuracy]
) -> list[ReportTable]:
    described = _described(row, sides, judgement)
    tables = [ReportTable(row.name, ("percent", *_PRINTED), _table_rows(row, judgement), described, 0)]
    if accuracy:
        rows = [[name.replace("_", " "), *each.cells()] for name, each in accuracy.items()]
        note = "unsure parts are left out; hidden recall: of the hidden parts, those predicted hidden"
        tables.append(ReportTable("predicted visibility against the truth", ("part", *ACCURACY), rows, note))
    return tables


def _printed(content: ReportTable) -> Table:
    table = Table(title=content.title, caption=content.note)
    for number, name in enumerate(content.columns):
        table.add_column(name, justify="right" if number else "left")
    for cells in content.rows:
        table.add_row(*cells)
    return table


def _write_report(
    path: Path, row: Protocol, tables: Sequence[ReportTable], sides: Sequence[Side], embedder: Embedder
) -> None:
    """Ranked lists of queries spread evenly over the query list, so that nobody has chosen them."""
    query, gallery = sides
    step = max(1, len(query.people) // _REPORT_QUERIES)
    queries = []
    for number in range(0, len(query.people), step)[:_REPORT_QUERIES]:
        person = query.people[number]
        answers = []
        for distance, found in zip(
            *map(torch.Tensor.tolist, ranked(row, query, gallery, number, _REPORT_ANSWERS)), strict=True
        ):
            other = gallery.people[found]
            title = f"{other.identity}, camera {other.camera}"
            answers.append(Answer(other.path, title, distance, other.identity == person.identity))
        queries.append(report_query(embedder, person.path, answers, title=f"{person.identity}, camera {person.camera}"))
    write_report(path, f"hpnet: {row.name}", queries, tables)
