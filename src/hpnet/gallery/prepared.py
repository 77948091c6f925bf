"""People held in memory so that a search has to look closely at few of them, and still finds exactly the nearest.

In: blocks of people, and queries. Out: the k nearest of each query.

Beside its features every person has sketches that bound all distances from below (`bounds`). Whoever is bounded above
the k-th distance found so far is passed over; the distance of the others is computed by `part_distance` itself, from
the features as they are stored. Where a question ranks by probability, its cost takes the distance's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hpnet.gallery.bounds import Bounds, Question, Rotation, Sketches, fit, sketched
from hpnet.gallery.nearest import Block, Nearest, among_these, first_of_each, merged, together
from hpnet.parts import PartFeatures

BLOCK: Final = 32_768  # people that lie together: 64 MB of 4 x 256 float16, copied when one of them is removed
FEW: Final = 2048  # people whose distances are computed sooner than they are bounded
FIT: Final = 16_384  # people whose spread decides the rotation
_TILE: Final = 1 << 18  # bounds computed at a time, 1 MB a part
_WIDTH: Final = 8192  # people whose sketches are converted at a time at most, 6 MB
_WORTH: Final = 16  # if more than one pair in so many may be near, waiting for better costs more than it spares
_FAR: Final = 3e38
_FEW_PAIRS: Final = 4096  # not worth two steps
_ROUGH: Final = 1e-4  # greater than the error of distances in float32
_ROUNDED: Final = 1e-6  # greater than what rounding to float32 and to seven decimals does to a cost
_WAITING: Final = 1 << 22  # pairs: 80 MB


class Waiting:
    """Pairs of a query and a person whose distance may yet have to be computed."""

    def __init__(self) -> None:
        self._pieces: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        self.count = 0

    def add(self, row: NDArray[np.int64], person: NDArray[np.int64], bound: NDArray[np.float32]) -> None:
        """Let pairs wait: the query's row, the person's number, at most their distance."""
        self._pieces.append((row, person, bound))
        self.count += len(row)

    def promising(self, k: int) -> NDArray[np.int64]:
        """Take out the k people of each query who may be nearest."""
        row, person, bound = self._all()
        taken = np.unique(person[first_of_each(k, row, (bound,))])
        stays = ~np.isin(person, taken)
        self._pieces, self.count = [(row[stays], person[stays], bound[stays])], int(stays.sum())
        return taken

    def below(self, limit: Float[Tensor, " q"]) -> NDArray[np.int64]:
        """Take out who may be nearer than the limit of any query; nobody waits any longer."""
        row, person, bound = self._all()
        self._pieces, self.count = [], 0
        return np.unique(person[bound <= limit.numpy()[row]])

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        row, person, bound = zip(nothing, *self._pieces, strict=True)
        self._pieces = [(np.concatenate(row), np.concatenate(person), np.concatenate(bound))]
        return self._pieces[0]


def nearest_among(blocks: Iterable[Block], questions: Sequence[Question]) -> list[Nearest]:
    """The nearest people for each question; nothing is kept of a block once the next one comes."""
    answers = [Nearest(question.k) for question in questions]
    for block in blocks:
        for question, best in zip(questions, answers, strict=True):
            offer(best, question, block)
    return answers


def offer(best: Nearest, question: Question, block: Block) -> None:
    """Consider people: who may be among the nearest is measured in double precision.

    Rounded thereafter, equal people are equally far away wherever they stand, so that their ids decide.
    """
    if len(question) * len(block.ids) > _FEW_PAIRS:
        block = _likely(best, question, block)
    if len(block.ids):
        distance = question.distances(block.people.to(torch.float64)).round(decimals=7).float()
        # In double precision the order is that of the odds which anybody computes from the distances told.
        cost = None if question.calibration is None else question.cost(distance.double(), block.people.visibility)
        best.offer(block.ids, distance, cost)


def _likely(best: Nearest, question: Question, block: Block) -> Block:
    """Those of a block whose cost in single precision is not too great already."""
    rough = question.cost(question.distances(block.people), block.people.visibility)
    last = rough.topk(min(question.k, len(block.ids)), largest=False).values[:, -1]
    limit = torch.minimum(last, best.farthest(len(question))) * (1 + _ROUGH) + _ROUGH
    return _some(block, (rough <= limit[:, None]).any(0).nonzero()[:, 0])


class Held:
    """Everybody, in memory: blocks of people with their sketches.

    The rotation is fitted to the people who are there; it is never wrong, only less sharp when others come, and so it
    is fitted again whenever they have doubled, until there are enough.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._sketches: list[Sketches | None] = []
        self._rotation: Rotation | None = None
        self._fitted_to = 0

    def __len__(self) -> int:
        return sum(len(block.ids) for block in self.blocks)

    def add(self, block: Block) -> None:
        """Hold more people. Small blocks are put together when their sizes are alike, so that few are ever copied."""
        self.blocks.append(_by_part(block))
        self._sketches.append(None if self._rotation is None else sketched(block.people, self._rotation))
        while len(self.blocks) > 1:
            left, right = (len(each.ids) for each in self.blocks[-2:])
            if left > 2 * right or left + right > BLOCK:
                return
            self.blocks[-2:] = [_by_part(together(self.blocks[-2:]))]
            self._sketches[-2:] = [_joined(self._sketches[-2:])]

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Let people go."""
        for place, block in enumerate(self.blocks):
            stays = ~np.isin(block.ids, ids)
            if not stays.all():
                rows = torch.from_numpy(np.flatnonzero(stays))
                self.blocks[place] = _by_part(_some(block, rows))
                self._sketches[place] = _some_sketches(self._sketches[place], rows)
        left = [place for place, block in enumerate(self.blocks) if len(block.ids)]
        self.blocks = [self.blocks[place] for place in left]
        self._sketches = [self._sketches[place] for place in left]

    def prepare(self) -> None:
        """Make the sketches that are missing."""
        if self._fitted_to < FIT and len(self) >= max(FEW, 2 * self._fitted_to):
            sample = self._sample()
            self._rotation, self._fitted_to = fit(sample), len(self)
            self._sketches = [None] * len(self.blocks)
        if self._rotation is not None:
            for place, block in enumerate(self.blocks):
                if self._sketches[place] is None:
                    self._sketches[place] = sketched(block.people, self._rotation)

    def _sample(self) -> PartFeatures:
        step = -(-len(self) // FIT)
        return PartFeatures.concatenate([block.people[::step] for block in self.blocks])

    def nearest(self, question: Question, allowed: NDArray[np.int64] | None = None, *, pruned: bool = True) -> Nearest:
        """The k nearest people of each query.

        Args:
            question: at least one query.
            allowed: the ids of those who are searched; None for everybody.
            pruned: False computes every distance; the answer is the same.
        """
        if pruned:
            self.prepare()
        if not pruned or self._rotation is None:
            best = Nearest(question.k)
            for block in self.blocks:
                offer(best, question, block if allowed is None else among_these(block, allowed))
            return best
        search = _Search(self.blocks, question, Bounds(question, self._rotation))
        for place, sketches in enumerate(self._sketches):
            assert sketches is not None
            search.look_at(place, sketches, allowed)
        search.finish()
        return search.best


class _Search:
    """One search: bounds decide whose distance is computed, and the distances found tighten what bounds decide by.

    Who is near enough by the bounds waits, for most will be too far when better is known. Whenever the people looked at
    have doubled, the distances of the most promising are computed.
    """

    def __init__(self, blocks: list[Block], question: Question, bounds: Bounds) -> None:
        self.blocks, self.question, self.bounds = blocks, question, bounds
        self.best = Nearest(question.k)
        self.starts = np.cumsum([0, *(len(block.ids) for block in blocks)])
        self.waiting = Waiting()
        self.doubled = 0

    def limit(self) -> Float[Tensor, " q"]:
        """A little more than the k-th cost so far, for both are rounded; finite even if there is none yet."""
        return (self.best.farthest(len(self.question)) * (1 + _ROUNDED) + _ROUNDED).clamp_(max=_FAR)

    def look_at(self, place: int, sketches: Sketches, allowed: NDArray[np.int64] | None) -> None:
        """Consider the people of a block; bounds are computed tile by tile, so that they stay in cache."""
        ids, width = self.blocks[place].ids, min(max(256, _TILE // len(self.question)), _WIDTH)
        tiles = [slice(start, start + width) for start in range(0, len(ids), width)]
        bounds = torch.cat([self.bounds(sketches, columns) for columns in tiles], dim=1)
        wanted = np.ones(len(ids), np.bool_) if allowed is None else np.isin(ids, allowed)
        if allowed is not None:
            bounds[:, torch.from_numpy(~wanted)] = torch.inf
        self.consider(int(self.starts[place]), bounds, wanted)

    def consider(self, start: int, bounds: Float[Tensor, "q m"], wanted: NDArray[np.bool_]) -> None:
        """Let those wait who may be near, and compute what has become due; nobody else than `wanted`."""
        if bool(self.best.farthest(len(self.question)).isinf().any()):
            least = bounds.topk(min(self.question.k, bounds.shape[1]), largest=False)
            first = np.unique(least.indices[least.values.isfinite()].numpy())
            self.score(start + first)
            bounds[:, torch.from_numpy(first)] = torch.inf
            wanted[first] = False  # nobody is offered twice
        row, column = (bounds <= self.limit()[:, None]).nonzero(as_tuple=True)
        if len(row) * _WORTH > bounds.numel():
            likely = np.unique(column.numpy())
            # Taking out more than half costs more than it spares.
            self.score(start + (likely if 2 * len(likely) < bounds.shape[1] else np.flatnonzero(wanted)))
            return
        self.waiting.add(row.numpy(), start + column.numpy(), bounds[row, column].numpy())
        if self.waiting.count > _WAITING:
            self.finish()
        elif start + bounds.shape[1] >= 2 * self.doubled:
            self.doubled = start + bounds.shape[1]
            self.score(self.waiting.promising(self.question.k))

    def score(self, people: NDArray[np.int64]) -> None:
        """Compute the distances of people, given by their numbers in ascending order."""
        cuts = zip(self.blocks, self.starts, pairwise(np.searchsorted(people, self.starts).tolist()), strict=False)
        pieces = (
            block if last - first == len(block.ids) else _some(block, torch.from_numpy(people[first:last] - start))
            for block, start, (first, last) in cuts
            if last > first
        )
        for piece in merged(pieces):
            offer(self.best, self.question, piece)

    def finish(self) -> None:
        """Compute the distances of all who waited and are still near enough."""
        self.score(self.waiting.promising(self.question.k))
        self.score(self.waiting.below(self.limit()))


def _by_part(block: Block) -> Block:
    """The same, with each part's features lying together in memory: they are converted three times faster."""
    by_part = block.people.features.transpose(0, 1)
    if by_part.is_contiguous():
        return block
    return Block(block.ids, PartFeatures(by_part.contiguous().transpose(0, 1), block.people.visibility))


def _some(block: Block, rows: Tensor) -> Block:
    return Block(block.ids[rows.numpy()], block.people[rows])


def _some_sketches(sketches: Sketches | None, rows: Tensor) -> Sketches | None:
    if sketches is None:
        return None
    return Sketches(sketches.numbers[:, rows], sketches.shown[rows], sketches.shortest)


def _joined(pieces: Iterable[Sketches | None]) -> Sketches | None:
    known = [piece for piece in pieces if piece is not None]
    if len(known) < 2:
        return None
    numbers, shown, shortest = zip(*known, strict=True)
    return Sketches(torch.cat(numbers, dim=1), torch.cat(shown), min(shortest))
