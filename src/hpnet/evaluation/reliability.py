"""How far probabilities are off: of pairs called "70 %", seven in ten should show one person.

In: probabilities of pairs, and which pairs show one person; as many as there are, piece by piece. Out: the expected
calibration error (Guo et al. 2017) and the Brier score, with both kinds of pairs weighing the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BINS: Final = 15  # as Guo et al. 2017
_FINE: Final = 256  # levels in a bin: a probability is known to 1 / 3840, half of which moves no error seen here
_LEVELS: Final = BINS * _FINE


@dataclass(frozen=True)
class Reliability:
    """How far off probabilities were, where pairs of one person and of two count equally, whatever their number.

    Attributes:
        same, different: how many pairs there were.
        ece: expected calibration error, 0..1: over 15 bins of equal width, the mean of |mean probability - share of
            pairs of one person|, each bin weighing what its pairs weigh.
        brier: mean squared difference between the probability and what was true; always saying 1/2 has 0.25.
        by_bin: mean probability, share of pairs of one person, and weight (all together 1) of each bin that is not
            empty.
    """

    same: int
    different: int
    ece: float
    brier: float
    by_bin: tuple[tuple[float, float, float], ...]

    def as_record(self) -> dict[str, Any]:
        """For result files; the calibration error in percent, as it is published."""
        bins = [dict(zip(("probability", "same", "weight"), each, strict=True)) for each in self.by_bin]
        counts = {"pairs_of_one_person": self.same, "pairs_of_two": self.different}
        return {**counts, "ece": 100 * self.ece, "brier": self.brier, "bins": bins}


class Tally:
    """Counts pairs by their probability, so that no pair need be kept.

    Args:
        groups: into how many kinds of pairs, told apart by a number, the counts are divided.
    """

    def __init__(self, groups: int = 1) -> None:
        self._counts = torch.zeros(2, groups, _LEVELS, dtype=torch.int64)

    def add(
        self,
        probability: Float[Tensor, "*n"],
        match: Bool[Tensor, "*n"],
        counted: Bool[Tensor, "*n"],
        group: Int[Tensor, "*n"] | None = None,
    ) -> None:
        """Count some pairs.

        Args:
            probability: that each is one person, 0..1.
            match: which of them are.
            counted: the others are left out.
            group: of each, from 0.
        """
        cell = (probability * _LEVELS).int().clamp_(max=_LEVELS - 1)
        if group is not None:
            cell += group * _LEVELS
        nowhere = self._counts[0].numel()
        cell.masked_fill_(~counted, nowhere)
        some = [torch.bincount(each, minlength=nowhere + 1)[:nowhere] for each in (cell[match], cell.flatten())]
        same, every = (each.view(self._counts.shape[1:]).cpu() for each in some)
        self._counts += torch.stack([same, every - same])

    def reliability(self, group: int | None = None) -> Reliability | None:
        """Of all pairs, or of one group; None without pairs of both kinds."""
        counts = self._counts.sum(1) if group is None else self._counts[:, group]
        pairs = counts.sum(1, keepdim=True)
        if int(pairs.amin()) == 0:
            return None
        level = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
        weight = counts / pairs.double() / 2
        truth = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        in_bin = weight.view(2, BINS, _FINE).sum(2)
        said, total = (weight * level).view(2, BINS, _FINE).sum((0, 2)), in_bin.sum(0)
        bins = torch.stack([said / total, in_bin[0] / total, total], 1)[total > 0]
        return Reliability(
            same=int(pairs[0]),
            different=int(pairs[1]),
            ece=float((said - in_bin[0]).abs().sum()),
            brier=float((weight * (level - truth).square()).sum()),
            by_bin=tuple((a, b, c) for a, b, c in bins.tolist()),
        )
