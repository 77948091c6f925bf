"""Lower bounds of what ranks people: loose ones from a sketch of each part, close ones from its features.

In: people, and queries. Out: for each pair a number that its distance, or its cost by probability, is never below.

A sketch takes a sixth of the features' room: a part's leading numbers after a rotation that sorts directions by how
much people differ along them, and the length of what is left. By Cauchy and Schwarz

    a . b  <=  (leading a) . (leading b) + |rest of a| |rest of b|,

which bounds the distance from below. Products may be rough, for their greatest error is taken off the bound
(`PRODUCTS`): rough products of whole features make the close bounds. Who shows which part is known exactly, and with it
the curve that turns the distance into odds: these never rise with the distance, so that a bound of the distance becomes
one of the cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from hpnet.calibration import Calibration
from hpnet.distance import Metric, Visibility, mean_of_parts
from hpnet.gallery.nearest import ranked_distance, restricted
from hpnet.parts import PartFeatures

SKETCH: Final = 40  # numbers of a sketch: 16 % of 256
_TILE: Final = 1 << 18  # bounds computed at a time, 1 MB a part
_AT_ONCE: Final = 8192  # people sketched at a time, 8 MB
_NUMBERS: Final = 1 << 19  # numbers of a part converted at a time, 2 MB
_LONGEST: Final = 1.03  # a feature's length at most, if it is bounded
_FAR: Final = 9.0  # beyond any squared difference


class Product(NamedTuple):
    """A way to multiply queries by people.

    Attributes:
        multiply: queries and people to their products, part by part.
        works_in: the number type that both are brought to and the result is rounded to; None for the people's own.
    """

    multiply: Callable[[Float[Tensor, "p q s"], Float[Tensor, "p m s"]], Float[Tensor, "p q m"]]
    works_in: torch.dtype | None

    def error(self, stored: torch.dtype) -> float:
        """At most what is lost of a product of vectors of length 1, beside what rounding the query loses."""
        rounding, exact = (torch.finfo(each).eps / 2 for each in (self.works_in or stored, stored))
        # The result is rounded, and people if they are stored more exactly; sums of some hundred numbers are float32.
        return rounding * (2 if rounding > exact else 1) + 2**-14


def _in_bfloat16(query: Float[Tensor, "p q s"], people: Float[Tensor, "p m s"]) -> Float[Tensor, "p q m"]:
    # By way of float32 it converts three times faster.
    people = people if people.dtype == torch.bfloat16 else people.float().bfloat16()
    return query.bfloat16() @ people.transpose(1, 2)


def _in_float32(query: Float[Tensor, "p q s"], people: Float[Tensor, "p m s"]) -> Float[Tensor, "p q m"]:
    return query @ people.float().transpose(1, 2)


def _one_by_one(query: Float[Tensor, "p q s"], people: Float[Tensor, "p m s"]) -> Float[Tensor, "p q m"]:
    # A matrix by one vector is read as it is stored, and summed in float32.
    rows = [those @ one for mine, those in zip(query.to(people.dtype), people, strict=True) for one in mine]
    return torch.stack(rows).view(*query.shape[:2], -1)


PRODUCTS: Final = {
    "bfloat16": Product(_in_bfloat16, torch.bfloat16),
    "float32": Product(_in_float32, torch.float32),
    "one by one": Product(_one_by_one, None),
}


@cache
def fastest_product(queries: int, numbers: int, stored: torch.dtype) -> Product:
    """The way that this machine is best at for so many queries and numbers; all lead to the same answer.

    It is found by trying. A way that errs more than it should is not taken: libraries may sum as they like.
    """
    chance = torch.Generator().manual_seed(0)
    query = normalize(torch.randn(4, queries, numbers, generator=chance), dim=2).bfloat16().float()
    people = normalize(torch.randn(4, 4096, numbers, generator=chance), dim=2).to(stored)
    people[:, 0] = query[:, 0]  # the greatest product
    exact = query.double() @ people.double().transpose(1, 2)

    def seconds(product: Product) -> float:
        took = []
        for _ in range(4):
            start = time.perf_counter()
            found = product.multiply(query, people)
            took.append(time.perf_counter() - start)
        return min(took[1:]) if bool((found - exact).abs().max() < 1.01 * product.error(stored)) else math.inf

    return min(PRODUCTS.values(), key=seconds)


class Sketches(NamedTuple):
    """What m people are bounded by.

    Attributes:
        numbers: per part the leading numbers and the length of the rest (rounded up); or the whole features.
        rounded: the greatest length of what the leading numbers lost when they were rounded.
        shown: which parts they show.
        shortest: the least length of a visible feature, squared.
        hidden: the least and the greatest length of a feature that is not visible, squared; 1 if there is none.
    """

    numbers: Float[Tensor, "p m s"]
    rounded: float
    shown: Bool[Tensor, "p m"]
    shortest: float
    hidden: tuple[float, float]


Rotation = Float[Tensor, "p d r"]


def fit(people: PartFeatures) -> Rotation | None:
    """Per part the directions in which people differ most; None if features are too short to be worth a sketch."""
    count, parts, dimensions = people.features.shape
    leading = min(SKETCH, dimensions * 3 // 16) - 1
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
    numbers = torch.empty(parts, count, rotation.shape[2] + 1, dtype=torch.bfloat16)
    lengths, rounded = torch.empty(parts, count), 0.0
    for part, start in product(range(parts), range(0, count, _AT_ONCE)):
        rows = slice(start, start + _AT_ONCE)
        features = people.features[rows, part].float()
        length = torch.linalg.vector_norm(features, dim=1).square_()
        # What is not seen may be of any length; no bound is made of what is long (`Bounds.hold`).
        leading = features.masked_fill((length > _LONGEST**2)[:, None], 0) @ rotation[part]
        stored = leading.bfloat16()
        rounded = max(rounded, float((stored.float() - leading).norm(dim=1).max()))
        # What float32 loses in the difference is added; the result is rounded up.
        rest = ((length - leading.square().sum(1)).clamp_(min=0, max=_LONGEST**2) + 4e-7).sqrt_()
        numbers[part, rows, :-1], lengths[part, rows] = stored, length
        numbers[part, rows, -1] = rest * (1 + torch.finfo(torch.bfloat16).eps)
    seen = people.visibility.T.contiguous()
    shortest, ends = torch.where(seen, lengths, 1.0).min(), torch.where(seen, 1.0, lengths).aminmax()
    return Sketches(numbers, rounded, seen, float(shortest), (float(ends.min), float(ends.max)))


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
    """Lower bounds of a question's costs.

    Args:
        question: what is asked.
        rotation: what the people's sketches were made with; None if their whole features are given instead.
    """

    def __init__(self, question: Question, rotation: Rotation | None) -> None:
        self.question = question
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab, and the cosine distance is 1 - ab
        self.scale = 2.0 if question.metric == "euclidean" else 1.0
        vectors = question.query.features.transpose(0, 1)
        if question.visibility != "ignore":
            vectors = vectors.masked_fill(~question.query.visibility.T[..., None], 0)
        self.length: Float[Tensor, "p q 1"] = vectors.norm(dim=2, keepdim=True)
        if rotation is not None:
            turn = rotation[list(question.chosen)]
            leading = vectors @ turn
            rest = (vectors - leading @ turn.transpose(1, 2)).norm(dim=2, keepdim=True)
            vectors = torch.cat([leading, rest], dim=2)
        self.vectors = vectors * -self.scale
        self._lost: dict[torch.dtype, Float[Tensor, "p q 1"]] = {}  # length of what rounding the vectors loses

    def hold(self, people: Sketches) -> bool:
        """Whether anything is known of these people: not if parts count that are hidden and of any length."""
        if self.question.visibility == "common":
            return True
        return people.hidden[1] <= _LONGEST**2 and float(self.length.max()) <= _LONGEST

    def __call__(self, people: Sketches) -> Float[Tensor, "q m"]:
        """At most the costs of m people, as far as they are ranked; computed tile by tile."""
        question, (_, count, size) = self.question, people.numbers.shape
        way = fastest_product(1 if len(question) == 1 else 64, size, people.numbers.dtype)
        offset = self._offset(people, way)
        converted = size if way.works_in not in (None, people.numbers.dtype) else 1
        width = max(256, min(_TILE // len(question), _NUMBERS // converted))
        query_shows = question.query.visibility.float()
        result = torch.empty(len(question), count)
        for start in range(0, count, width):
            tile = slice(start, start + width)
            numbers, shown = people.numbers[:, tile], people.shown[:, tile]
            if len(question.chosen) < len(numbers):
                numbers, shown = numbers[list(question.chosen)], shown[list(question.chosen)]
            least = way.multiply(self.vectors, numbers).add(offset).clamp_(min=0, max=_FAR)
            if question.metric == "euclidean":
                least.sqrt_()
            mean_of_parts(least, (query_shows, shown.float().T), question.visibility, result[:, tile])
            if question.visibility == "authors":  # as `ranked_distance` has it
                result[:, tile][query_shows @ shown.float() == 0] = torch.inf
            result[:, tile] = question.cost(result[:, tile], people.shown[:, tile].T)
        return result

    def _offset(self, people: Sketches, way: Product) -> Float[Tensor, "p q 1"]:
        """What a product is added to, so that the sum is at most what the part adds (euclidean: squared)."""
        stored = people.numbers.dtype
        works_in = way.works_in or stored
        if works_in not in self._lost:
            lost = self.vectors - self.vectors.to(works_in).float()
            self._lost[works_in] = lost.norm(dim=2, keepdim=True)
        error: Tensor = _LONGEST * (self._lost[works_in] + self.scale * self.length * way.error(stored))
        error += self.scale * people.rounded
        if self.question.metric == "cosine":
            return 1 - error
        common = self.question.visibility == "common"
        return self.length.square() + (people.shortest if common else min(people.shortest, people.hidden[0])) - error
