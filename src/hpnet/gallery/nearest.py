"""The nearest people, exactly: blocks of features in, the k best of each query out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hpnet.distance import Metric, Visibility, common_part_count, part_distance
from hpnet.gallery.columns import LAYOUTS, GalleryError
from hpnet.parts import PARTS, Part, PartFeatures

ROWS_AT_ONCE: Final = 32_768  # people read and scored at a time: 64 MB of 4 x 256 float16


class Block(NamedTuple):
    """Some people of the gallery, and their ids."""

    ids: NDArray[np.int64]
    people: PartFeatures


class Nearest:
    """The k nearest of all that was offered, for each query: costs decide, then ids.

    Attributes:
        k: people kept per query.
        row, id, cost, distance: of those kept, row after row, best first. The cost is the distance, unless another was
            given.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.row, self.id = np.empty(0, np.int64), np.empty(0, np.int64)
        self.cost, self.distance = np.empty(0, np.float32), np.empty(0, np.float32)

    def offer(
        self, ids: NDArray[np.int64], distance: Float[Tensor, "q m"], cost: Float[Tensor, "q m"] | None = None
    ) -> None:
        """Consider m more people; those of infinite cost are none."""
        if not distance.numel():
            return
        cost = distance if cost is None else cost
        # Whoever costs more than the k-th of this block cannot be among the k nearest of all.
        limit = cost.topk(min(self.k, len(ids)), largest=False).values[:, -1:]
        row, column = ((cost <= limit) & cost.isfinite()).nonzero(as_tuple=True)
        rows = np.concatenate([self.row, row.numpy()])
        numbers = np.concatenate([self.id, ids[column.numpy()]])
        distances = np.concatenate([self.distance, distance[row, column].numpy()])
        costs = np.concatenate([self.cost, cost[row, column].numpy()])
        kept = first_of_each(self.k, rows, (numbers, costs))
        self.row, self.id, self.cost, self.distance = rows[kept], numbers[kept], costs[kept], distances[kept]

    def farthest(self, count: int) -> Float[Tensor, " q"]:
        """The k-th cost of each of `count` queries, as a float32; infinite as long as there are fewer."""
        ends = np.searchsorted(self.row, np.arange(count + 1))
        last = np.where(np.diff(ends) < self.k, -1, ends[:-1] + self.k - 1)
        return torch.from_numpy(np.append(self.cost, np.float32(np.inf))[last]).float()

    def rows(self, count: int) -> list[list[tuple[int, float]]]:
        """(id, distance) of the nearest, for each of `count` queries."""
        ends = np.searchsorted(self.row, np.arange(count + 1)).tolist()
        pairs = list(zip(self.id.tolist(), self.distance.tolist(), strict=True))
        return [pairs[start:end] for start, end in pairwise(ends)]


def first_of_each(k: int, rows: NDArray[np.int64], keys: tuple[NDArray[np.generic], ...]) -> NDArray[np.intp]:
    """Where the first k entries of each row are, by the last key, then by the one before; row after row."""
    order = np.lexsort((*keys, rows))
    sorted_rows = rows[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
    return order[rank < k]


def at_unit_length(features: PartFeatures) -> Float[Tensor, "n p d"]:
    """Visible parts at exactly unit length (what is accepted may be 1 % off), the others as they are."""
    values = features.features.detach().to("cpu", torch.float32)
    length = values.norm(dim=-1, keepdim=True)
    return values / torch.where(features.visibility.cpu()[..., None], length, 1.0)


def chosen_parts(parts: Iterable[Part | str] | None, count: int) -> tuple[int, ...]:
    """The indices of the parts to compare."""
    if parts is None:
        return tuple(range(count))
    if count != len(PARTS):
        raise GalleryError("parts: features of whole people have no parts to choose from")
    if not (chosen := {_part(part) for part in ([parts] if isinstance(parts, str) else parts)}):
        raise GalleryError("parts: name at least one part")
    return tuple(sorted(chosen))


def _part(named: Part | str) -> Part:
    if isinstance(named, Part):
        return named
    name = re.sub(r"[ -]", "_", str(named).strip()).upper()
    if name not in Part.__members__:
        raise GalleryError(f"parts: {named!r} is unknown; choose from {', '.join(LAYOUTS[0])}")
    return Part[name]


def restricted(people: PartFeatures, chosen: tuple[int, ...]) -> PartFeatures:
    """The people, by the chosen parts alone."""
    if len(chosen) == people.features.shape[1]:
        return people
    columns = list(chosen)
    return PartFeatures(people.features[:, columns], people.visibility[:, columns])


def ranked_distance(
    query: PartFeatures, people: PartFeatures, metric: Metric, visibility: Visibility
) -> Float[Tensor, "q m"]:
    """`part_distance`, infinite for those who are not ranked."""
    distance = part_distance(query, people, metric, visibility)
    if visibility == "authors":
        distance[common_part_count(query.visibility, people.visibility) == 0] = torch.inf
    return distance


def is_compared(visibility: Visibility, mine: bool, theirs: bool) -> bool:
    """Whether a part that the query shows (mine) and the person (theirs) takes part in the distance."""
    return {"common": mine and theirs, "authors": mine and theirs, "query": mine, "ignore": True}[visibility]


def merged(blocks: Iterable[Block]) -> Iterator[Block]:
    """Small blocks put together: a gallery that grew one by one is not scored one by one."""
    waiting: list[Block] = []
    for block in blocks:
        if waiting and sum(len(each.ids) for each in waiting) + len(block.ids) > ROWS_AT_ONCE:
            yield together(waiting)
            waiting = []
        waiting.append(block)
    if waiting:
        yield together(waiting)


def together(blocks: list[Block]) -> Block:
    """One block of them all."""
    if len(blocks) == 1:
        return blocks[0]
    ids = np.concatenate([block.ids for block in blocks])
    return Block(ids, PartFeatures.concatenate([block.people for block in blocks]))


def among_these(block: Block, ids: NDArray[np.int64]) -> Block:
    """Those of a block who have these ids."""
    rows = np.flatnonzero(np.isin(block.ids, ids))
    return Block(block.ids[rows], block.people[torch.from_numpy(rows)])


def without(block: Block, ids: NDArray[np.int64]) -> Block:
    """The others of a block."""
    stays = ~np.isin(block.ids, ids)
    if stays.all():
        return block
    return Block(block.ids[stays], block.people[torch.from_numpy(np.flatnonzero(stays))])
