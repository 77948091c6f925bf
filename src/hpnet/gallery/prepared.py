"""People held in memory so that a search has to look closely at few of them, and still finds exactly the nearest.

In: blocks of people, and queries. Out: the k nearest of each query.

Beside its features every person has sketches that bound all distances from below (`bounds`). Whoever is bounded above
the k-th distance found so far is passed over; where sketches leave too many, the features themselves bound more
closely. The distance of the others is computed by `part_distance` itself, from the features as they are stored. Where a
question ranks by probability, its cost takes the distance's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hpnet.gallery.bounds import Bounds, Question, Rotation, Sketches, fit, sketched
from hpnet.gallery.nearest import Block, Nearest, among_these, merged, together
from hpnet.parts import PartFeatures

BLOCK: Final = 65_536  # people that lie together: 128 MB of 4 x 256 float16, copied when one of them is removed
FEW: Final = 2048  # people whose distances are computed sooner than they are bounded
FIT: Final = 16_384  # people whose spread decides the rotation
_WORTH: Final = 16  # if more than one pair in so many may be near, waiting for better costs more than it spares
_FAR: Final = 3e38
_FEW_PAIRS: Final = 4096  # not worth two steps
_MANY_PAIRS: Final = 1 << 16  # worth three
_ROUGH: Final = 1e-4  # greater than the error of distances in float32
_ROUNDED: Final = 1e-6  # greater than what rounding to float32 and to seven decimals does to a cost
_WAITING: Final = 1 << 22  # pairs: 80 MB


class Waiting:
    """Pairs of a query and a person whose distance may yet have to be computed."""

    def __init__(self) -> None:
        self._pieces = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]

    def __len__(self) -> int:
        return sum(len(row) for row, _, _ in self._pieces)

    def add(self, row: NDArray[np.int64], person: NDArray[np.int64], bound: NDArray[np.float32]) -> None:
        """Let pairs wait: the query's row, the person's number, at most their cost."""
        self._pieces.append((row, person, bound))

    def dismiss(self, limit: Float[Tensor, " q"]) -> None:
        """Only those wait on who may be nearer than their query's limit."""
        row, person, bound = self._all()
        stays = bound <= limit.numpy()[row]
        self._pieces = [(row[stays], person[stays], bound[stays])]

    def promising(self, k: int) -> NDArray[np.int64]:
        """Take out the k people of each query who may be nearest, in ascending order."""
        row, person, bound = self._all()
        order = np.argsort(row, kind="stable")
        of_each = np.split(order, np.flatnonzero(np.diff(row[order])) + 1)
        first = [at[np.argpartition(bound[at], k - 1)[:k]] if len(at) > k else at for at in of_each]
        taken = np.unique(person[np.concatenate(first)])
        stays = ~np.isin(person, taken)
        self._pieces = [(row[stays], person[stays], bound[stays])]
        return taken

    def bound_by(self, closer: Callable[[NDArray[np.int64]], Float[Tensor, "q m"]]) -> None:
        """Bound all anew by what is computed for their people, given in ascending order."""
        row, person, _ = self._all()
        people, column = np.unique(person, return_inverse=True)
        self._pieces = [(row, person, closer(people)[torch.from_numpy(row), torch.from_numpy(column)].numpy())]

    def everybody(self) -> NDArray[np.int64]:
        """Take out all people, in ascending order."""
        row, person, bound = self._all()
        self._pieces = [(row[:0], person[:0], bound[:0])]
        return np.unique(person)

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        row, person, bound = zip(*self._pieces, strict=True)
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
                sketches = self._sketches[place]
                self._sketches[place] = None if sketches is None else _some_sketches(sketches, rows)
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
            pruned: False looks at the features of all of them; the answer is the same.
        """
        self.prepare()
        if self._rotation is None:
            best = Nearest(question.k)
            for block in self.blocks:
                offer(best, question, block if allowed is None else among_these(block, allowed))
            return best
        sketches = [each for each in self._sketches if each is not None]
        search = _Search(self.blocks, sketches, question, self._rotation if pruned else None)
        for place in range(len(self.blocks)):
            search.look_at(place, allowed)
        search.finish()
        return search.best


class _Search:
    """One search: bounds decide whose distance is computed, and the distances found tighten what bounds decide by.

    Who is near enough by the bounds waits, for most will be too far when better is known. Whenever the people looked at
    have doubled, the distances of the most promising are computed. Who still waits in the end is bounded more closely.
    """

    def __init__(
        self, blocks: list[Block], sketches: list[Sketches], question: Question, rotation: Rotation | None
    ) -> None:
        self.blocks, self.sketches, self.question = blocks, sketches, question
        self.loose = None if rotation is None else Bounds(question, rotation)
        self.close = Bounds(question, None)
        self.best = Nearest(question.k)
        self.starts = np.cumsum([0, *(len(block.ids) for block in blocks)])
        self.waiting = Waiting()
        self.doubled = 0

    def limit(self) -> Float[Tensor, " q"]:
        """A little more than the k-th cost so far, for both are rounded; finite even if there is none yet."""
        return (self.best.farthest(len(self.question)) * (1 + _ROUNDED) + _ROUNDED).clamp_(max=_FAR)

    def look_at(self, place: int, allowed: NDArray[np.int64] | None) -> None:
        """Consider the people of a block: by their sketches, or more closely if these leave too many."""
        block, start = self.blocks[place], int(self.starts[place])
        wanted = np.ones(len(block.ids), np.bool_) if allowed is None else np.isin(block.ids, allowed)
        likely = wanted
        for bounds, people in ((self.loose, self.sketches[place]), (self.close, self._whole(place))):
            if bounds is None or not bounds.hold(people) or not wanted.any():
                continue
            least = bounds(people)
            if not wanted.all():
                least[:, torch.from_numpy(~wanted)] = torch.inf
            self._begin(start, least, wanted)
            near = least <= self.limit()[:, None]
            row, column = near.nonzero(as_tuple=True)
            if len(row) * _WORTH <= near.numel():
                self.waiting.add(row.numpy(), start + column.numpy(), least[row, column].numpy())
                self._wait(start + len(wanted))
                return
            likely = near.any(0).numpy() & wanted
        # Taking out more than half costs more than it spares.
        self.score(start + np.flatnonzero(likely if 2 * likely.sum() < len(wanted) else wanted))

    def _begin(self, start: int, least: Float[Tensor, "q m"], wanted: NDArray[np.bool_]) -> None:
        """As long as there are fewer than k, compute the distances of those who promise most."""
        if bool(self.best.farthest(len(self.question)).isinf().any()):
            found = least.topk(min(self.question.k, least.shape[1]), largest=False)
            first = np.unique(found.indices[found.values.isfinite()].numpy())
            self.score(start + first)
            least[:, torch.from_numpy(first)] = torch.inf
            wanted[first] = False  # nobody is offered twice

    def _wait(self, looked_at: int) -> None:
        """Compute what has become due when so many people have been looked at."""
        if len(self.waiting) > _WAITING:
            self.finish()
        elif looked_at >= 2 * self.doubled:
            self.doubled = looked_at
            self._score_promising()

    def _score_promising(self) -> None:
        self.waiting.dismiss(self.limit())
        self.score(self.waiting.promising(self.question.k))
        self.waiting.dismiss(self.limit())

    def finish(self) -> None:
        """Compute the distances of all who waited and are near enough by close bounds too."""
        self._score_promising()
        if len(self.waiting) * len(self.question) > _MANY_PAIRS:
            self.waiting.bound_by(self._closely)
            self._score_promising()
        self.score(self.waiting.everybody())

    def score(self, people: NDArray[np.int64]) -> None:
        """Compute the distances of people, given by their numbers in ascending order."""
        pieces = (
            block if len(rows) == len(block.ids) else _some(block, torch.from_numpy(rows))
            for block, rows in ((self.blocks[place], rows) for place, rows in self._cut(people))
        )
        for piece in merged(pieces):
            offer(self.best, self.question, piece)

    def _closely(self, people: NDArray[np.int64]) -> Float[Tensor, "q m"]:
        """The close bounds of people, given by their numbers in ascending order; 0 where there is none."""
        bounds = [torch.zeros(len(self.question), 0)]
        for place, rows in self._cut(people):
            some = _some_sketches(self._whole(place), torch.from_numpy(rows))
            bounds.append(self.close(some) if self.close.hold(some) else torch.zeros(len(self.question), len(rows)))
        return torch.cat(bounds, dim=1)

    def _whole(self, place: int) -> Sketches:
        """What the people of a block are bounded by closely."""
        features = self.blocks[place].people.features.transpose(0, 1)
        return self.sketches[place]._replace(numbers=features, rounded=0.0)

    def _cut(self, people: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """People's numbers in ascending order, block by block: its place, and their rows in it."""
        for place, (begin, end) in enumerate(pairwise(np.searchsorted(people, self.starts).tolist())):
            if end > begin:
                yield place, people[begin:end] - self.starts[place]


def _by_part(block: Block) -> Block:
    """The same, with each part's features lying together in memory: they are converted three times faster."""
    by_part = block.people.features.transpose(0, 1)
    if by_part.is_contiguous():
        return block
    return Block(block.ids, PartFeatures(by_part.contiguous().transpose(0, 1), block.people.visibility))


def _some(block: Block, rows: Tensor) -> Block:
    return Block(block.ids[rows.numpy()], block.people[rows])


def _some_sketches(sketches: Sketches, rows: Tensor) -> Sketches:
    return sketches._replace(numbers=sketches.numbers[:, rows], shown=sketches.shown[:, rows])


def _joined(pieces: Iterable[Sketches | None]) -> Sketches | None:
    known = [piece for piece in pieces if piece is not None]
    if len(known) < 2:
        return None
    numbers, rounded, shown, shortest, hidden = zip(*known, strict=True)
    ends = (min(least for least, _ in hidden), max(greatest for _, greatest in hidden))
    return Sketches(torch.cat(numbers, dim=1), max(rounded), torch.cat(shown, dim=1), min(shortest), ends)
