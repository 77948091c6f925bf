"""Lower bounds of what ranks people, from a sketch of each part that takes a sixth of its features' room.

In: people, and queries. Out: for each pair a number that its distance, or its cost by probability, is never below.

A sketch is a part's leading numbers after a rotation that sorts directions by how much people differ along them, and
the length of what is left. By Cauchy and Schwarz

    a . b  <=  (leading a) . (leading b) + |rest of a| |rest of b|,

which bounds the distance from below. Products of sketches may be rough, for their greatest error is taken off the bound
(`PRODUCTS`). Who shows which part is known exactly, and with it the curve that turns the distance into odds: these
never rise with the distance, so that a bound of the distance becomes one of the cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float16
from torch import Tensor

from hpnet.calibration import Calibration
from hpnet.distance import Metric, Visibility
from hpnet.gallery.nearest import ranked_distance, restricted
from hpnet.parts import PartFeatures

SKETCH: Final = 40  # numbers of a sketch: 16 % of 256
_HIDDEN: Final = 4.0  # stands in for the cosine of a part that is not seen: far above 1, so that it bounds by 0


class Product(NamedTuple):
    """A way to multiply leading numbers, and how far off it may be for vectors of length 1.

    Each number is rounded where it is stored (float16: 2^-11), where it is converted, and where the result is.
    """

    multiply: Callable[[Float[Tensor, "p q s"], Float16[Tensor, "p m s"]], Float[Tensor, "p q m"]]
    error: float


def _in_bfloat16(query: Float[Tensor, "p q s"], people: Float16[Tensor, "p m s"]) -> Float[Tensor, "p q m"]:
    # By way of float32 it converts three times faster.
    return (query.bfloat16() @ people.float().bfloat16().transpose(1, 2)).float()


def _in_float32(query: Float[Tensor, "p q s"], people: Float16[Tensor, "p m s"]) -> Float[Tensor, "p q m"]:
    return query @ people.float().transpose(1, 2)


PRODUCTS: Final = {
    "bfloat16": Product(_in_bfloat16, 2**-7),  # three roundings by 2^-9, one by 2^-11
    "float32": Product(_in_float32, 2**-10),  # one by 2^-11
}


@cache
def fastest_product(*, single: bool) -> Product:
    """The way that this machine is best at for one query or for many, found by trying; all lead to the same answer."""
    chance = torch.Generator().manual_seed(0)
    query = torch.randn(4, 1 if single else 64, SKETCH, generator=chance)
    people = torch.randn(4, 4096, SKETCH, generator=chance).half()

    def seconds(product: Product) -> float:
        took = []
        for _ in range(4):
            start = time.perf_counter()
            product.multiply(query, people)
            took.append(time.perf_counter() - start)
        return min(took[1:])

    return min(PRODUCTS.values(), key=seconds)


class Sketches(NamedTuple):
    """Of m people: per part the leading numbers, the length of the rest (rounded up) and the mark of being hidden."""

    numbers: Float16[Tensor, "p m s"]
    shown: Bool[Tensor, "m p"]
    shortest: float  # of all visible parts, squared


Rotation = Float[Tensor, "p d r"]


def fit(people: PartFeatures) -> Rotation | None:
    """Per part the directions in which people differ most; None if features are too short to be worth a sketch."""
    count, parts, dimensions = people.features.shape
    leading = min(SKETCH, dimensions * 3 // 16) - 2
    if leading < 1 or not count:
        return None
    directions = []
    for part in range(parts):
        seen = people.features[people.visibility[:, part], part].double()
        directions.append(torch.linalg.eigh(seen.T @ seen).eigenvectors[:, -leading:].flip(1).float())
    return torch.stack(directions)


def sketched(people: PartFeatures, rotation: Rotation) -> Sketches:
    """The sketches of m people."""
    count, parts, _ = people.features.shape
    numbers = torch.zeros(parts, count, rotation.shape[2] + 2, dtype=torch.float16)
    shortest = 1.0
    for part in range(parts):
        seen = people.visibility[:, part]
        features = people.features[:, part].float() * seen[:, None]
        leading, length = features @ rotation[part], features.square().sum(1)
        # What float32 loses in the difference is added; float16 then rounds up.
        rest = ((length - leading.square().sum(1)).clamp_(min=0) + 4e-7).sqrt_() * (1 + 2**-10)
        numbers[part, :, :-2] = leading
        numbers[part, :, -2] = torch.where(seen, rest, 0)
        numbers[part, :, -1] = torch.where(seen, 0, _HIDDEN)
        shortest = min(shortest, float(length[seen].min())) if bool(seen.any()) else shortest
    return Sketches(numbers, people.visibility, shortest)


@dataclass(frozen=True)
class Question:
    """What is asked: q queries restricted to the chosen parts, and how to compare.

    Attributes:
        query: the queries, by the chosen parts alone.
        chosen: the parts' indices.
        k: people wanted per query.
        calibration: of the chosen parts and in proportion, to rank by odds; None ranks by the distance itself.
    """

    query: PartFeatures
    chosen: tuple[int, ...]
    k: int
    metric: Metric
    visibility: Visibility
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return len(self.query)

    def distances(self, people: PartFeatures) -> Float[Tensor, "q m"]:
        """Exactly."""
        return ranked_distance(self.query, restricted(people, self.chosen), self.metric, self.visibility)

    def cost(self, distance: Float[Tensor, "q m"], shown: Bool[Tensor, "m p"]) -> Float[Tensor, "q m"]:
        """What ranks people at these distances: at least 0, infinite or not a number where the distance is.

        Args:
            distance: to m people, or less: the cost then is not above the true one.
            shown: which of all parts they show.
        """
        if self.calibration is None:
            return distance
        odds = self.calibration.log_odds(distance, self.query.visibility, shown[:, list(self.chosen)])
        return odds.neg_().masked_fill_(distance.isinf(), torch.inf)


class Bounds:
    """Lower bounds of a question's costs, from sketches."""

    def __init__(self, question: Question, rotation: Rotation) -> None:
        self.question = question
        features, shown = question.query.features, question.query.visibility
        turn = rotation[list(question.chosen)]
        leading = torch.einsum("qpd,pdr->pqr", features, turn)
        rest = (features.transpose(0, 1) - leading @ turn.transpose(1, 2)).norm(dim=2, keepdim=True)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab, and the cosine distance is 1 - ab
        self.scale = 2.0 if question.metric == "euclidean" else 1.0
        self.leading = torch.cat([leading, rest, torch.ones_like(rest)], dim=2) * -self.scale
        self.shown = shown
        self.product = fastest_product(single=len(question) == 1)

    def __call__(self, sketches: Sketches, columns: slice) -> Float[Tensor, "q m"]:
        """At most the costs; not a number for who is not ranked."""
        numbers = sketches.numbers[:, columns]
        if len(self.question.chosen) < len(numbers):
            numbers = numbers[list(self.question.chosen)]
        offset = 1 + sketches.shortest if self.question.metric == "euclidean" else 1.0
        # What the query does not show adds nothing.
        most = torch.where(self.shown.T[..., None], offset - self.scale * self.product.error, -torch.inf)
        least = self.product.multiply(self.leading, numbers).add_(most).clamp_(min=0)
        if self.question.metric == "euclidean":
            least.sqrt_()
        shown = sketches.shown[columns]
        return self.question.cost(self._mean(least.sum(0), shown), shown)

    def _mean(self, total: Float[Tensor, "q m"], shown: Bool[Tensor, "m p"]) -> Float[Tensor, "q m"]:
        """At most the distance, written over what the parts that both show add; 0 / 0 where no part counts.

        Parts that a rule compares though one side does not show them are taken to add nothing.
        """
        if self.question.visibility == "ignore":
            return total.div_(len(self.question.chosen))
        own = self.shown.sum(1, keepdim=True).float()
        if self.question.visibility == "query":
            return total.div_(own)
        common = self.shown.float() @ shown[:, list(self.question.chosen)].float().T
        return total.div_(common) if self.question.visibility == "common" else total.mul_(1 / common + 1 / own)
