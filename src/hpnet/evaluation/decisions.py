"""What a ranking is worth when somebody must decide: is this the same person, and is that person here at all?

In: the distances of a protocol, and the calibration in the weights if they carry one. Out: `Decisions`: open-set
scores, how far the probabilities are off, and the closed-set scores of a ranking by probability instead of distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hpnet.calibration import Calibration
from hpnet.distance import common_part_count
from hpnet.evaluation.metrics import AveragePrecision, QueryScores, Scores, Ties, percent, score_queries
from hpnet.evaluation.openset import FPIR, OpenSet, halves_of, nearest, open_set
from hpnet.evaluation.reliability import Reliability, Tally
from hpnet.visualize import ReportTable

CELLS_PER_CHUNK: Final = 1 << 22
_SHOWN: Final = ("R1", "R5", "R10", "mAP")


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of q queries and g gallery photos.

    Attributes:
        distance: by the protocol, +inf where nothing can be compared.
        match, ignore: which show one person, and which do not count.
        query, gallery: which parts each photo shows.
    """

    distance: Float[Tensor, "q g"]
    match: Bool[Tensor, "q g"]
    ignore: Bool[Tensor, "q g"]
    query: Bool[Tensor, "q p"]
    gallery: Bool[Tensor, "g p"]

    def rows(self, some: slice) -> Pairs:
        """Those of some queries."""
        return Pairs(self.distance[some], self.match[some], self.ignore[some], self.query[some], self.gallery)

    def chunks(self) -> list[slice]:
        """Queries that are looked at together, so that memory beside the pairs is bounded."""
        rows = max(1, CELLS_PER_CHUNK // max(1, self.distance.shape[1]))
        return [slice(start, start + rows) for start in range(0, len(self.distance), rows)]


@dataclass(frozen=True)
class ByProbability:
    """The same by the weights' calibration.

    Attributes:
        scores: closed set, ranked by P(same); who cannot be compared comes last, as by distance.
        open_set: thresholds are probabilities (prior 0.5).
        reliability: how far P(same) was off, over all comparable pairs that count; None without pairs of both kinds.
        by_common_parts: the same of pairs with so many common parts, both kinds weighing the same among them.
    """

    scores: Scores
    open_set: OpenSet | None
    reliability: Reliability | None
    by_common_parts: dict[int, Reliability] = field(default_factory=dict)


@dataclass(frozen=True)
class Decisions:
    """How well one can decide.

    Attributes:
        open_set: by distance; None where identities are too few.
        by_probability: None without a calibration, or by another distance than the calibrated one.
    """

    open_set: OpenSet | None
    by_probability: ByProbability | None = None

    def as_record(self) -> dict[str, Any]:
        """For scores.json: `open_set`, and with a calibration `calibration` and `ranked_by_probability`."""
        by = self.by_probability
        alarms = {"fpir_asked": 100 * FPIR, "by_distance": self.open_set and self.open_set.as_record()}
        if by is None:
            return {"open_set": alarms}
        alarms["by_probability"] = by.open_set and by.open_set.as_record()
        by_parts = {str(parts): each.as_record() for parts, each in by.by_common_parts.items()}
        calibration = None if by.reliability is None else {**by.reliability.as_record(), "by_common_parts": by_parts}
        return {"open_set": alarms, "calibration": calibration, "ranked_by_probability": percent(by.scores)}

    def tables(self, scores: Scores) -> list[ReportTable]:
        """What is printed and reported; `scores` are the closed-set ones by distance."""
        rows = [_row("by distance", scores, self.open_set)]
        by = self.by_probability
        if by is not None:
            rows.append(_row("by P(same)", by.scores, by.open_set))
        some = self.open_set
        note = (
            "open set: identities are too few"
            if some is None
            else (
                f"open set: half of the query identities are out of the gallery, in turn; {some.genuine} queries of "
                f"people who are in it, {some.strangers} of strangers, of whom at most {FPIR:.0%} may raise an alarm"
            )
        )
        head = ("ranked, percent", *_SHOWN, f"TPIR at FPIR {FPIR:.0%}")
        tables = [ReportTable("closed and open set", head, rows, note)]
        if by is not None and by.reliability is not None:
            tables.append(_reliability_table(by.reliability, by.by_common_parts))
        return tables


def decide(
    pairs: Pairs,
    identities: tuple[Int64[Tensor, " q"], Int64[Tensor, " g"]],
    rules: tuple[AveragePrecision, Ties],
    calibration: Calibration | None,
    seed: int,
) -> Decisions:
    """Look at all pairs once, some queries at a time.

    Args:
        pairs: what the protocol ranks by.
        identities: of queries and gallery, by numbers that both share; below 0 if unknown.
        rules: the protocol's, for the scores by probability.
        calibration: of the pairs' distance; None leaves the probabilities out.
        seed: of the halves that are strangers in turn.
    """
    halves = halves_of(*identities, seed)
    able = (pairs.match & ~pairs.ignore).any(1)
    chunks = [pairs.rows(some) for some in pairs.chunks()]
    near = torch.cat([nearest(each.distance, each.match, each.ignore, halves.gallery) for each in chunks])
    by_distance = open_set(near, able, halves.query)
    if calibration is None:
        return Decisions(by_distance)
    tally = Tally(calibration.parts + 1)
    looked = [_by_probability(each, calibration, halves.gallery, rules, tally) for each in chunks]
    near = torch.cat([near for near, _ in looked])
    return Decisions(
        by_distance,
        ByProbability(
            scores=_joined([scores for _, scores in looked]).mean(),
            open_set=_as_probabilities(open_set(near, able, halves.query)),
            reliability=tally.reliability(),
            by_common_parts={
                parts: each
                for parts in range(1, calibration.parts + 1)
                if (each := tally.reliability(parts)) is not None
            },
        ),
    )


def _by_probability(
    pairs: Pairs, calibration: Calibration, half: Tensor, rules: tuple[AveragePrecision, Ties], tally: Tally
) -> tuple[Float[Tensor, "r 4"], QueryScores]:
    """Count the probabilities of some queries' pairs; their nearest answers and scores by log-odds, negative ones."""
    comparable = pairs.distance.isfinite()
    odds = calibration.log_odds(pairs.distance, pairs.query, pairs.gallery)
    common = common_part_count(pairs.query, pairs.gallery).int()
    tally.add(odds.sigmoid(), pairs.match, comparable & ~pairs.ignore, common)
    # By log-odds, for float probabilities near 1 are all the same.
    unlikely = odds.neg_().masked_fill_(~comparable, torch.inf)
    return nearest(unlikely, pairs.match, pairs.ignore, half), score_queries(
        unlikely, pairs.match, pairs.ignore, *rules
    )


def _joined(pieces: list[QueryScores]) -> QueryScores:
    return QueryScores(*(torch.cat([getattr(each, name) for each in pieces]) for name in ("first_rank", "ap", "inp")))


def _as_probabilities(outcome: OpenSet | None) -> OpenSet | None:
    """The same with probabilities for thresholds."""
    if outcome is None:
        return None
    thresholds = (-torch.tensor(outcome.thresholds, dtype=torch.float64)).sigmoid().tolist()
    return OpenSet(outcome.tpir, outcome.fpir, tuple(thresholds), outcome.genuine, outcome.strangers)


def _row(title: str, scores: Scores, outcome: OpenSet | None) -> list[str]:
    values = percent(scores)
    return [title, *(f"{values[name]:.1f}" for name in _SHOWN), "-" if outcome is None else f"{100 * outcome.tpir:.1f}"]


def _reliability_table(total: Reliability, by_common_parts: Mapping[int, Reliability]) -> ReportTable:
    named = {"all": total, **{f"  {parts} parts in common": each for parts, each in by_common_parts.items()}}
    rows = [
        [name, f"{each.same:,}", f"{each.different:,}", f"{100 * each.ece:.1f}", f"{each.brier:.3f}"]
        for name, each in named.items()
    ]
    note = "both kinds of pairs weigh the same; knowing nothing, P = 0.5, has a Brier score of 0.25"
    head = ("pairs", "of one person", "of two", "calibration error %", "Brier score")
    return ReportTable("how far P(same) is off", head, rows, note)
