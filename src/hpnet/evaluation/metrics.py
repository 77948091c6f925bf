"""Ranks into scores: CMC, mAP and mINP of a distance matrix.

In: distances, which pairs match, which do not count. Out: `Scores`. Nothing is sorted but the few right answers of each
query: a wrong entry matters only by how many right ones stand behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AveragePrecision = Literal["rectangle", "trapezoid"]
Ties = Literal["worst", "index"]

RANKS: Final = (1, 3, 5, 10)
CELLS_PER_CHUNK: Final = 1 << 21
_LEVELS: Final = 2048


@dataclass(frozen=True)
class Scores:
    """How well a gallery was ranked; every value is a fraction 0..1 averaged over the valid queries.

    Attributes:
        cmc: rank -> share of queries with a right answer among that many first entries.
        mean_ap: mean average precision.
        mean_inp: mean inverse negative penalty (Ye et al. 2021): right answers / rank of the last one.
        valid_queries: queries that have a right answer at all.
    """

    cmc: dict[int, float]
    mean_ap: float
    mean_inp: float
    valid_queries: int

    def __str__(self) -> str:
        """One line, in percent as the papers print."""
        ranks = "  ".join(f"R{rank} {value:.1%}" for rank, value in self.cmc.items())
        return f"{ranks}  mAP {self.mean_ap:.1%}  mINP {self.mean_inp:.1%}  ({self.valid_queries} queries)"


def percent(scores: Scores) -> dict[str, float]:
    """Scores by their printed names, in percent."""
    ranks = {f"R{rank}": 100 * value for rank, value in scores.cmc.items()}
    return {**ranks, "mAP": 100 * scores.mean_ap, "mINP": 100 * scores.mean_inp}


@dataclass(frozen=True)
class QueryScores:
    """The same for each query by itself.

    Attributes:
        first_rank: (q,) place of the first right answer, 1 is best; 0 for a query that has none.
        ap: (q,) average precision, NaN for a query that has no right answer.
        inp: (q,) inverse negative penalty, NaN likewise.
    """

    first_rank: Int[Tensor, " q"]
    ap: Float[Tensor, " q"]
    inp: Float[Tensor, " q"]

    def mean(self, chosen: Bool[Tensor, " q"] | None = None) -> Scores:
        """Average over the valid queries, or over the chosen ones among them. NaN when there are none."""
        valid = self.first_rank > 0 if chosen is None else (self.first_rank > 0) & chosen
        first = self.first_rank[valid]
        cmc = {rank: (first <= rank).double().mean().item() for rank in RANKS}
        return Scores(cmc, self.ap[valid].mean().item(), self.inp[valid].mean().item(), int(valid.sum()))


def score(
    distance: Float[Tensor, "q g"],
    match: Bool[Tensor, "q g"],
    ignore: Bool[Tensor, "q g"],
    ap: AveragePrecision = "rectangle",
    ties: Ties = "worst",
) -> Scores:
    """Score a ranking.

    Args:
        distance: query to gallery; +inf is allowed and ranks last, NaN is not.
        match: pairs that show the same identity.
        ignore: pairs that do not count, right or wrong (same camera, junk).
        ap: `rectangle` sums precision at the right answers (torchreid, fast-reid, scikit-learn); `trapezoid` averages
            it with the precision just before (Market-1501's original code, the authors).
        ties: `worst` puts a wrong entry before a right one of equal distance, so that file order never helps;
            `index` goes by gallery order, as a stable sort does (the authors).

    Raises:
        ValueError: shapes differ, a distance is NaN, or no query has a right answer.
    """
    scores = score_queries(distance, match, ignore, ap, ties).mean()
    if not scores.valid_queries:
        raise ValueError("no query has a right answer in the gallery: check identities, cameras and the ignore rule")
    return scores


def score_queries(
    distance: Float[Tensor, "q g"],
    match: Bool[Tensor, "q g"],
    ignore: Bool[Tensor, "q g"],
    ap: AveragePrecision = "rectangle",
    ties: Ties = "worst",
) -> QueryScores:
    """What `score` averages, for each query; same arguments. A query without a right answer is kept, as invalid."""
    if not distance.shape == match.shape == ignore.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (distance, match, ignore))
        raise ValueError(f"distance, match and ignore must have one shape (q, g), not {shapes}")
    if ap not in get_args(AveragePrecision) or ties not in get_args(Ties):
        raise ValueError(f"ap is rectangle or trapezoid and ties worst or index, not {ap!r} and {ties!r}")
    rows = max(1, CELLS_PER_CHUNK // max(_LEVELS, distance.shape[1]))
    chunks = [slice(start, start + rows) for start in range(0, len(distance), rows)]
    pieces = [_score_chunk(distance[chunk], match[chunk], ignore[chunk], ap, ties) for chunk in chunks]
    if not pieces:
        nothing = distance.new_empty(0, dtype=torch.float64)
        return QueryScores(nothing.long(), nothing, nothing)
    first, precision, inp = (torch.cat(column) for column in zip(*pieces, strict=True))
    return QueryScores(first, precision, inp)


def equal_error(distance: Float[Tensor, " n"], match: Bool[Tensor, " n"]) -> tuple[float, float]:
    """The threshold at which as many matching pairs are refused as others are taken for the same, and that error rate.

    Args:
        distance: of n pairs; pairs at infinity were not comparable and are left out.
        match: which pairs show one person.

    Raises:
        ValueError: without comparable pairs of either kind.
    """
    comparable = distance.isfinite()
    right, wrong = (distance[comparable & kind].sort().values for kind in (match, ~match))
    if not len(right) or not len(wrong):
        raise ValueError("a threshold needs comparable pairs of one person and of two")
    thresholds = torch.cat([right, wrong]).unique()  # type: ignore[no-untyped-call]
    missed = 1 - torch.searchsorted(right, thresholds) / len(right)
    taken = torch.searchsorted(wrong, thresholds) / len(wrong)
    best = int((missed - taken).abs().argmin())
    return float(thresholds[best]), float((missed[best] + taken[best]) / 2)


def _score_chunk(
    distance: Float[Tensor, "r g"], match: Bool[Tensor, "r g"], ignore: Bool[Tensor, "r g"], ap: str, ties: str
) -> tuple[Tensor, Tensor, Tensor]:
    if bool(distance.isnan().any()):
        raise ValueError("distance holds NaN: features of these photos are broken")
    right = match & ~ignore
    count = right.count_nonzero(1)
    k = int(count.max()) if count.numel() else 0
    if k == 0:
        empty = torch.full(count.shape, torch.nan, dtype=torch.float64, device=count.device)
        return torch.zeros_like(count), empty, empty.clone()
    hits, columns = _sorted_right_answers(distance, right, count, k)
    wrong_before = _wrong_entries_before(distance, right | ignore, hits, columns, ties)
    order = torch.arange(1, k + 1, device=distance.device)
    real = order <= count[:, None]
    rank = (order + wrong_before).double()
    precision = order / rank
    if ap == "trapezoid":
        before = torch.where(rank > 1, (order - 1) / (rank - 1).clamp(min=1), 1.0)
        precision = (precision + before) / 2
    divisor = torch.where(count > 0, count, torch.nan).double()
    last = rank.masked_fill(~real, 0).amax(1)
    first = torch.where(count > 0, rank[:, 0].long(), 0)
    return first, (precision * real).sum(1) / divisor, divisor / last


def _sorted_right_answers(
    distance: Float[Tensor, "r g"], right: Bool[Tensor, "r g"], count: Int[Tensor, " r"], k: int
) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r k"]]:
    """Distances and columns of each query's right answers by (distance, column), filled up with infinity at the end."""
    row, column = right.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    hits = distance.new_full((len(distance), k), torch.inf)
    columns = torch.full(hits.shape, distance.shape[1], dtype=torch.long, device=row.device)
    hits[row, place] = distance[row, column]
    columns[row, place] = column
    hits, order = hits.sort(dim=1, stable=True)
    return hits, columns.gather(1, order)


def _wrong_entries_before(
    distance: Float[Tensor, "r g"],
    excluded: Bool[Tensor, "r g"],
    hits: Float[Tensor, "r k"],
    columns: Int[Tensor, "r k"],
    ties: str,
) -> Int[Tensor, "r k"]:
    """How many wrong entries rank before each right answer.

    Each wrong entry is dropped into the bin of the first right answer that ranks behind it; summing the bins from the
    left counts it for that one and all later. A row's range up to its last right answer is cut into equal levels. As
    rounding keeps order, a level without a right answer has one bin for all its entries; only the few that share
    their level with a right answer are compared one by one.
    """
    r, k = hits.shape
    real = columns < distance.shape[1]
    low = distance.amin(1, keepdim=True).nan_to_num()
    high = hits.where(real & hits.isfinite(), low).amax(1, keepdim=True)
    finite = torch.finfo(distance.dtype)
    # In bounds, so that no entry becomes 0 * inf, whatever the range.
    scale = ((_LEVELS - 2) / (high - low)).clamp(finite.tiny, finite.max)

    def level(values: Tensor) -> Tensor:
        return ((values - low) * scale).clamp(0, _LEVELS - 1).long()

    level_of_hit = level(hits)
    levels = torch.arange(_LEVELS, device=hits.device).repeat(r, 1)
    bin_of_level = torch.searchsorted(level_of_hit, levels, out_int32=True)
    shared = torch.zeros(r, _LEVELS + 1, dtype=torch.bool, device=hits.device)
    shared.scatter_(1, level_of_hit.where(real, _LEVELS), True)
    bins = bin_of_level.masked_fill(shared[:, :_LEVELS], -1).gather(1, level(distance))
    bins.masked_fill_(excluded, k)
    row, column = (bins < 0).nonzero(as_tuple=True)
    for some in torch.split(torch.arange(len(row), device=row.device), CELLS_PER_CHUNK // k + 1):
        its_hits, value = hits[row[some]], distance[row[some], column[some], None]
        ahead = its_hits < value
        if ties == "index":
            ahead |= (its_hits == value) & (columns[row[some]] < column[some, None])
        bins[row[some], column[some]] = ahead.sum(1).int()
    bins += torch.arange(r, device=bins.device, dtype=bins.dtype)[:, None] * (k + 1)
    return torch.bincount(bins.flatten(), minlength=r * (k + 1)).view(r, k + 1)[:, :k].cumsum(1)
