"""Open set: how many people are found when most who come are strangers and hardly any of those may raise an alarm.

In: for every query how far its nearest right and wrong answers are. Out: TPIR at a given FPIR, the "true positive
identification rate" of Grother, Ngan and Hanaoka (FRVT Part 2: Identification, NISTIR 8271, 2019) for the first rank,
also known as detection and identification rate (Phillips, Grother and Micheals 2011). Closed-set scores never ask
whether somebody is in the gallery at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

FPIR: Final = 0.01
_NEITHER: Final = 2


@dataclass(frozen=True)
class OpenSet:
    """TPIR at an FPIR, averaged over the two halves of identities that are strangers in turn.

    Attributes:
        tpir: of the queries whose person is in the gallery, the share whose first answer is right and nearer than the
            threshold; 0..1.
        fpir: of the strangers, the share whose first answer is nearer than the threshold; at most the rate asked for.
        thresholds: of each half, in the unit in which the answers were ranked.
        genuine, strangers: queries of either kind, both halves together.
    """

    tpir: float
    fpir: float
    thresholds: tuple[float, ...]
    genuine: int
    strangers: int

    def as_record(self) -> dict[str, Any]:
        """For result files; rates in percent."""
        thresholds = [each if isfinite(each) else None for each in self.thresholds]  # JSON knows no infinity
        rates = {"tpir": 100 * self.tpir, "fpir": 100 * self.fpir, "thresholds": thresholds}
        return {**rates, "genuine": self.genuine, "strangers": self.strangers}


@dataclass(frozen=True)
class Halves:
    """The queries' identities, divided by lot: while one half is out of the gallery, its queries are strangers.

    Attributes:
        query: (q) 0 or 1, the half of each query.
        gallery: (g) 0 or 1, or 2 for an identity that no query shows: it stays.
    """

    query: Int64[Tensor, " q"]
    gallery: Int64[Tensor, " g"]


def halves_of(query: Int64[Tensor, " q"], gallery: Int64[Tensor, " g"], seed: int) -> Halves:
    """Divide by the numbers of identities; below 0 stands nobody known, who is in neither half."""
    known = query[query >= 0].unique()  # type: ignore[no-untyped-call]
    drawn = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    most = int(torch.cat([query, gallery]).amax()) + 1 if len(query) + len(gallery) else 0
    half = torch.full((most + 1,), _NEITHER)  # the last entry is for -1
    half[known] = (drawn >= len(known) / 2).long()
    return Halves(half[query], half[gallery])


def nearest(
    distance: Float[Tensor, "q g"],
    match: Bool[Tensor, "q g"],
    ignore: Bool[Tensor, "q g"],
    gallery: Int64[Tensor, " g"],
) -> Float[Tensor, "q 4"]:
    """How near the nearest answer that counts is to each query: the right one, and the wrong ones by their half.

    Args:
        distance: of some queries to the gallery, +inf where nothing can be compared.
        match, ignore: pairs that show one person, and those that do not count.
        gallery: half of each gallery photo, 0..2.

    Returns:
        Distance of the right answer, then of the wrong ones in half 0, in half 1 and in neither; +inf where none is.
    """
    right = distance.masked_fill(~match | ignore, torch.inf)
    wrong = distance.masked_fill(match | ignore, torch.inf)
    beyond = distance.new_full((len(distance), 1), torch.inf)
    by_half = [torch.cat([wrong[:, gallery == half], beyond], 1).amin(1) for half in (0, 1, _NEITHER)]
    return torch.stack([torch.cat([right, beyond], 1).amin(1), *by_half], 1)


def open_set(
    near: Float[Tensor, "q 4"], able: Bool[Tensor, " q"], query: Int64[Tensor, " q"], fpir: float = FPIR
) -> OpenSet | None:
    """TPIR at an FPIR.

    Args:
        near: of every query, as `nearest` gives it.
        able: queries that have a right answer, be it one that cannot be compared.
        query: half of each query.
        fpir: share of strangers who may raise an alarm.

    Returns:
        None if a half has no strangers, or nobody who could be found.
    """
    outcomes = [_outcome(near, able, query, half, fpir) for half in (0, 1)]
    known = [each for each in outcomes if each is not None]
    if len(known) < len(outcomes):
        return None
    tpir, alarms, thresholds, genuine, strangers = zip(*known, strict=True)
    return OpenSet(_mean(tpir), _mean(alarms), tuple(thresholds), sum(genuine), sum(strangers))


def _outcome(
    near: Float[Tensor, "q 4"], able: Bool[Tensor, " q"], query: Int64[Tensor, " q"], half: int, fpir: float
) -> tuple[float, float, float, int, int] | None:
    """One half is out of the gallery."""
    right, wrong = near[:, 0], near[:, [1 + (1 - half), 1 + _NEITHER]].amin(1)
    strangers = wrong[query == half].sort().values
    genuine = (query == 1 - half) & able
    if not len(strangers) or not bool(genuine.any()):
        return None
    threshold = strangers[min(int(fpir * len(strangers)), len(strangers) - 1)]
    # A wrong answer at the same distance goes first, so that file order never helps.
    found = (right < wrong) & (right < threshold) & genuine
    alarms = float((strangers < threshold).double().mean())
    return float(found.sum() / genuine.sum()), alarms, float(threshold), int(genuine.sum()), len(strangers)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
