"""How likely two photos show one person, given their distance and the parts that both show.

In: `PartFeatures` of people whose identities are known, and who taught the network nothing. Out: a `Calibration`, one
logistic curve for each pattern of common parts, which lives in the header of the weights. A distance of 1.1 between two
whole bodies and one between two pairs of shoes say different things; the probability says the same thing everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hpnet.distance import part_distance
from hpnet.parts import PartFeatures

EVEN: Final = 0.5  # the prior of the fit: as if half of all pairs showed one person
FEWEST_PAIRS: Final = 100  # of each kind, for a curve of its own; the standard error of its log-odds is then about 0.2
MOST_PHOTOS: Final = 1500  # 1.1 million pairs: more would tell nothing new, for people and not pairs are the sample
_RIDGE: Final = 1e-6  # on the slope; ends the ascent where one distance parts all pairs, and is not felt elsewhere
_MOST_PARTS: Final = 8
_MOST_STEPS: Final = 50
_SETTLED: Final = 1e-9
_STEP: Final = 1e-3  # distances are counted in steps of this size: a thousandth moves no probability by a percent
_LEVELS: Final = 2000  # unit vectors are at most 2 apart

FittedOn = Literal["pattern", "size", "all"]
_FITTED_ON: Final[dict[str, FittedOn]] = {"pattern": "pattern", "size": "size", "all": "all"}


class CalibrationError(ValueError):
    """A calibration that cannot be used; the text names the field."""


@dataclass(frozen=True)
class Curve:
    """log-odds of "the same person" = intercept - slope * distance, where both kinds of pairs are equally frequent.

    Attributes:
        intercept: log-odds at distance 0.
        slope: how fast they fall, at least 0; 0 where distance says nothing.
        same, different: how many pairs it was fitted on.
        fitted_on: pairs restricted to this very pattern, to any of its size, or to any at all.
    """

    intercept: float
    slope: float
    same: int
    different: int
    fitted_on: FittedOn = "pattern"


@dataclass(frozen=True)
class Calibration:
    """From the paper's Eq. 1 (`part_distance`, euclidean + common) to the probability that it is the same person.

    Attributes:
        parts: p, how many parts the features have; 1 for a global descriptor.
        curves: one for each non-empty pattern of parts, a text of p digits: "1100" is head and torso.
    """

    parts: int
    curves: Mapping[str, Curve]

    def __post_init__(self) -> None:
        if not 1 <= self.parts <= _MOST_PARTS:
            raise CalibrationError(f"calibration: parts must be 1..{_MOST_PARTS}, not {self.parts}")
        if set(self.curves) != set(_patterns(self.parts)):
            raise CalibrationError(f"calibration: curves must name each pattern of {self.parts} parts once")
        for pattern, curve in self.curves.items():
            if not (math.isfinite(curve.intercept) and math.isfinite(curve.slope) and curve.slope >= 0):
                raise CalibrationError(
                    f"calibration: curve {pattern} must have finite numbers and a slope of at least 0"
                )

    def log_odds(
        self,
        distance: Float[Tensor, "q g"],
        query: Bool[Tensor, "q p"],
        gallery: Bool[Tensor, "g p"],
        prior: float = EVEN,
    ) -> Float[Tensor, "q g"]:
        """Log-odds that each pair is the same person.

        Args:
            distance: Eq. 1 of each pair.
            query, gallery: which parts they show.
            prior: share of pairs like these that show one person, before anything is compared; between 0 and 1.

        Returns:
            (q, g), of the distances' type. A pair without a common part has the prior's own log-odds.
        """
        if query.shape[1] != self.parts or gallery.shape[1] != self.parts:
            raise ValueError(f"calibration is of {self.parts} parts, not of {query.shape[1]} and {gallery.shape[1]}")
        before = _logit(prior)
        table = self._table(distance)
        theirs, result = numbers_of(gallery), torch.empty_like(distance)
        patterns, member = numbers_of(query).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        for number, pattern in enumerate(patterns):  # a row of coefficients each, and none for every pair
            rows = (member == number).nonzero()[:, 0]
            intercept, slope = table[:, theirs & pattern]
            result[rows] = (intercept - slope * distance[rows]).add_(before)
        return result.masked_fill_(distance.isinf(), before)

    def probability(self, distance: float, parts: Collection[int], prior: float = EVEN) -> float | None:
        """How likely it is that a pair shows one person, 0..1; None where no part is common: nothing was compared.

        Args:
            distance: Eq. 1 of the pair.
            parts: those that both show; for a global descriptor any.
            prior: as in `log_odds`.
        """
        if not parts or math.isinf(distance):
            return None
        curve = self._curve(parts)
        return float(torch.tensor(curve.intercept - curve.slope * distance + _logit(prior)).double().sigmoid())

    def threshold(self, parts: Collection[int], prior: float = EVEN) -> float | None:
        """The distance at which a pair that shows these parts is as likely one person as two; None if there is none."""
        if not parts:
            return None
        curve = self._curve(parts)
        return None if curve.slope == 0 else max(0.0, (curve.intercept + _logit(prior)) / curve.slope)

    def of_parts(self, chosen: Sequence[int]) -> Calibration:
        """The same for features of some parts alone, in ascending order: part 0 is then `chosen[0]`.

        Raises:
            CalibrationError: there are not that many parts.
        """
        if not all(0 <= part < self.parts for part in chosen):
            raise CalibrationError(
                f"calibration: is of {self.parts} parts, numbers {list(chosen)} are not all among them"
            )
        patterns = {
            pattern: _pattern([chosen[at] for at in _indices(pattern)], self.parts)
            for pattern in _patterns(len(chosen))
        }
        return Calibration(len(chosen), {pattern: self.curves[whole] for pattern, whole in patterns.items()})

    def in_proportion(self) -> Calibration:
        """The same order of pairs by numbers that suit a search: log-odds at most 0 that fall by at most the distance.

        All are shifted by the greatest intercept and, if the steepest slope is above 1, divided by it. So an error of
        the distance is none the greater in them, and nothing is lost by taking great numbers from each other.
        """
        greatest = max(curve.intercept for curve in self.curves.values())
        steepest = max(1.0, *(curve.slope for curve in self.curves.values()))
        curves = {
            pattern: replace(curve, intercept=(curve.intercept - greatest) / steepest, slope=curve.slope / steepest)
            for pattern, curve in self.curves.items()
        }
        return Calibration(self.parts, curves)

    def as_record(self) -> dict[str, Any]:
        """For the header of weights: numbers and texts."""
        curves = {
            pattern: [curve.intercept, curve.slope, curve.same, curve.different, curve.fitted_on]
            for pattern, curve in self.curves.items()
        }
        return {"parts": self.parts, "curves": curves}

    @staticmethod
    def from_record(record: object) -> Calibration:
        """What `as_record` gave.

        Raises:
            CalibrationError: it is something else.
        """
        if not isinstance(record, dict):
            raise CalibrationError(f"calibration: not a record of curves, but of type {type(record).__name__}")
        try:
            curves = {
                str(pattern): Curve(float(a), float(b), int(same), int(different), _FITTED_ON[source])
                for pattern, (a, b, same, different, source) in record["curves"].items()
            }
            parts = int(record["parts"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"calibration: not a record of curves ({error!r})") from error
        return Calibration(parts, curves)

    def _curve(self, parts: Collection[int]) -> Curve:
        return self.curves["1" if self.parts == 1 else _pattern(parts, self.parts)]

    def _table(self, like: Tensor) -> Float[Tensor, "2 n"]:
        """Intercepts and slopes by the number of their pattern; 0 for the empty one."""
        table = torch.zeros(2, 1 << self.parts, dtype=like.dtype)
        for pattern, curve in self.curves.items():
            table[:, _number(pattern)] = torch.tensor([curve.intercept, curve.slope], dtype=like.dtype)
        return table.to(like.device)


def calibration_of(training: Mapping[str, Any], source: object) -> Calibration | None:
    """The calibration in a weights header's record of its training, if there is one.

    Raises:
        CalibrationError: there is one that cannot be read; the text names `source`.
    """
    if training.get("calibration") is None:
        return None
    try:
        return Calibration.from_record(training["calibration"])
    except CalibrationError as error:
        raise CalibrationError(f"{source}: {error}") from error


@dataclass(frozen=True, eq=False)
class KnownPeople:
    """Photos of people whose identities are known.

    Attributes:
        features: what the network saw of n photos.
        identity: (n) who they are.
        camera: (n) where they were seen, below 0 if unknown.
    """

    features: PartFeatures
    identity: Int64[Tensor, " n"]
    camera: Int64[Tensor, " n"]

    def __getitem__(self, rows: Tensor) -> KnownPeople:
        """The chosen rows."""
        return KnownPeople(self.features[rows], self.identity[rows], self.camera[rows])

    def some(self, seed: int = 0) -> KnownPeople:
        """At most `MOST_PHOTOS` of them, by lot."""
        drawn = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(seed))
        return self[drawn[:MOST_PHOTOS]]

    def pairs(self) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"], Bool[Tensor, " m"]]:
        """Rows of the first and of the second photo of all pairs, and which show one person.

        Pairs of one person from one camera are left out, as the field's protocols do: they are often neighbouring
        frames, and who learns from them expects distances that another camera never gives.
        """
        first, second = torch.triu_indices(len(self.features), len(self.features), 1)
        match = self.identity[first] == self.identity[second]
        near = match & (self.camera[first] == self.camera[second]) & (self.camera[first] >= 0)
        return first[~near], second[~near], match[~near]


def fit(people: KnownPeople) -> Calibration | None:
    """Fit the curves on the pairs of people whom the network has not been trained on, both kinds counting equally.

    A pair is counted for each pattern of parts that it could show: with its common parts, and with each choice among
    them. So patterns that are rare among whole people have pairs too. A pattern with fewer than `FEWEST_PAIRS` of a
    kind takes the curve of all patterns of its size, or of all.

    Returns:
        None if there are no pairs to fit anything on.
    """
    some = people.some()
    first, second, match = some.pairs()
    parts = some.features.visibility.shape[1]
    by_part = torch.stack([_apart(some.features, part)[first, second] for part in range(parts)])
    counts = {pattern: _counts(by_part[_indices(pattern)].mean(0), match) for pattern in _patterns(parts)}
    chosen = {pattern: _enough(pattern, counts) for pattern in counts}
    if any(float(pairs.sum(1).amin()) == 0 for pairs, _ in chosen.values()):
        return None
    return Calibration(parts, {pattern: _curve_of(*each) for pattern, each in chosen.items()})


def numbers_of(visibility: Bool[Tensor, "n p"]) -> Int64[Tensor, " n"]:
    """The parts that are visible as bits of a number, part j as 2^j; the common parts of two are then `a & b`."""
    return (visibility.long() << torch.arange(visibility.shape[1], device=visibility.device)).sum(1)


def _patterns(parts: int) -> list[str]:
    """All non-empty patterns, as texts."""
    return [_text(number, parts) for number in range(1, 1 << parts)]


def _text(number: int, parts: int) -> str:
    return "".join("1" if number >> part & 1 else "0" for part in range(parts))


def _pattern(parts: Collection[int], of: int) -> str:
    return _text(sum(1 << int(part) for part in parts), of)


def _number(pattern: str) -> int:
    return sum(1 << part for part in _indices(pattern))


def _indices(pattern: str) -> list[int]:
    return [part for part, digit in enumerate(pattern) if digit == "1"]


def _logit(prior: float) -> float:
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie between 0 and 1, not {prior}")
    return math.log(prior) - math.log1p(-prior)


def _apart(features: PartFeatures, part: int) -> Float[Tensor, "n n"]:
    """Distances of one part alone; +inf where it is hidden in either."""
    alone = PartFeatures(features.features[:, part : part + 1], features.visibility[:, part : part + 1])
    return part_distance(alone, alone)


def _counts(distance: Float[Tensor, " m"], match: Bool[Tensor, " m"]) -> Float[Tensor, "2 n"]:
    """How many comparable pairs lie at each level of distance, float64: of one person, and of two."""
    kinds = [distance[distance.isfinite() & kind] for kind in (match, ~match)]
    levels = [(each / _STEP).long().clamp(max=_LEVELS - 1) for each in kinds]
    return torch.stack([torch.bincount(each, minlength=_LEVELS).double() for each in levels])


def _enough(pattern: str, counts: Mapping[str, Tensor]) -> tuple[Float[Tensor, "2 n"], FittedOn]:
    """The pairs that a pattern's curve is fitted on: its own, those of its size, or all, until they are enough."""
    wider: dict[FittedOn, list[Tensor]] = {
        "pattern": [counts[pattern]],
        "size": [each for other, each in counts.items() if other.count("1") == pattern.count("1")],
    }
    for fitted_on, some in wider.items():
        pairs = torch.stack(some).sum(0)
        if float(pairs.sum(1).amin()) >= FEWEST_PAIRS:
            return pairs, fitted_on
    return torch.stack(list(counts.values())).sum(0), "all"


def _curve_of(pairs: Float[Tensor, "2 n"], fitted_on: FittedOn) -> Curve:
    same, different = (int(each) for each in pairs.sum(1))
    return Curve(*logistic_curve(pairs, _STEP), same, different, fitted_on)


def logistic_curve(counts: Float[Tensor, "2 n"], step: float) -> tuple[float, float]:
    """Intercept and slope >= 0 that make the log-odds of both kinds of pairs likeliest, either kind weighing one half.

    Platt's method (1999): targets a little short of 0 and 1, so that few pairs cannot make it sure; Newton steps,
    halved until they climb (Lin, Lin and Weng 2007). Where distance would speak the wrong way round, the best that is
    allowed is a flat line.

    Args:
        counts: pairs of one person, and of two, at the distances step / 2, 3 step / 2 ...; float64, some of each.
        step: between two distances.
    """
    distance = (torch.arange(counts.shape[1], dtype=torch.float64) + 0.5) * step
    pairs = counts.sum(1, keepdim=True)
    share = counts / pairs / 2
    middle = float((share * distance).sum())  # about which intercept and slope hardly depend on each other
    away = middle - distance
    sure = torch.cat([(pairs[0] + 1) / (pairs[0] + 2), 1 / (pairs[1] + 2)])
    weight, target = share.sum(0), sure @ share  # the target already weighed

    def loss(at: Tensor) -> Tensor:
        odds = at[0] + at[1] * away
        return (weight * torch.nn.functional.softplus(odds) - target * odds).sum() + _RIDGE * at[1].square() / 2

    at = torch.zeros(2, dtype=torch.float64)
    for _ in range(_MOST_STEPS):
        chance = (at[0] + at[1] * away).sigmoid()
        first, second = weight * chance - target, weight * chance * (1 - chance)
        gradient = torch.stack([first.sum(), (first * away).sum() + _RIDGE * at[1]])
        cross, curved = (second * away).sum(), (second * away.square()).sum() + _RIDGE
        climb = torch.linalg.solve(torch.stack([second.sum(), cross, cross, curved]).view(2, 2), gradient)
        while bool(loss(at - climb) > loss(at)) and bool(climb.abs().max() > _SETTLED):
            climb = climb / 2
        at = at - climb
        if bool(climb.abs().max() < _SETTLED):
            break
    if at[1] <= 0:
        return _logit(float(target.sum())), 0.0
    return float(at[0] + at[1] * middle), float(at[1])
