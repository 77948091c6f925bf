"""How far apart two people are, by the parts both show.

In: the `PartFeatures` of q queries and g gallery people, or raw part features in the triplet loss. Out: a (q, g) matrix
of distances. Loss, protocols and search all measure here, so that they mean the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hpnet.parts import PartFeatures

Metric = Literal["euclidean", "cosine"]
Visibility = Literal["common", "query", "authors", "ignore"]

NO_COMMON_PART_AUTHORS: Final = 10_000.0  # what the authors' code puts where the paper's Eq. 1 says infinity
TILE: Final = (1024, 2048)  # queries x gallery scored at a time: 8 MB, which stays in cache from product to mean
_CANCELLATION: Final = 1e-3  # below this squared distance 2 - 2 cos has lost too many digits in float32


def part_distance(
    query: PartFeatures,
    gallery: PartFeatures,
    metric: Metric = "euclidean",
    visibility: Visibility = "common",
) -> Float[Tensor, "q g"]:
    """Visibility-aware distance of every query to every gallery person.

    With d_j the distance of part j (`euclidean`: length of the difference, `cosine`: 1 - cos) the result is

    - `common`: the mean of d_j over the parts visible in both; +inf without a common part. With `euclidean` this is
      the paper's Eq. 1.
    - `query`: the mean over the parts visible in the query; +inf if it shows none.
    - `authors`: the sum of `query` and `common`, 10,000 standing for `common` without a common part. With `cosine`
      this is what the authors' code searches by (a query that shows nothing is 10,000 from everybody).
    - `ignore`: the mean over all parts, whatever is visible (Table 4, "test w/o vis").

    Memory beside the result is bounded: pairs are scored tile by tile.

    Args:
        query: q people.
        gallery: g people with the same parts and dimensions, on the same device.
        metric: how a part is compared.
        visibility: which parts count.

    Returns:
        (q, g) float32 (float64 if the features are), at least 0.

    Raises:
        ValueError: parts or dimensions differ, or an option is unknown.
    """
    _check(query, gallery, metric, visibility)
    parts = query.features.shape[1]
    exact = torch.promote_types(query.features.dtype, gallery.features.dtype) == torch.float64
    dtype = torch.float64 if exact else torch.float32
    # One contiguous matrix per part is what the matrix product reads fastest; one part of a tile is converted in cache.
    queries = [query.features[:, part].to(dtype).contiguous() for part in range(parts)]
    shows = (query.visibility.to(dtype), gallery.visibility.to(dtype))
    result = torch.empty(len(query), len(gallery), dtype=dtype, device=query.features.device)
    # One place for all tiles: memory that is asked for anew is cleared by the system first.
    place = torch.empty(min(TILE[1], len(gallery)), query.features.shape[2], dtype=dtype, device=result.device)
    with torch.no_grad():
        for columns in _slices(len(gallery), TILE[1]):
            people = gallery.features[columns].transpose(0, 1)
            for rows in _slices(len(query), TILE[0]):
                pairs = (
                    (mine[rows], place[: len(theirs)].copy_(theirs))
                    for mine, theirs in zip(queries, people, strict=True)
                )
                shown = (shows[0][rows], shows[1][columns])
                distances = _part_distances(pairs, metric, shown if visibility == "common" else None)
                mean_of_parts(distances, shown, visibility, result[rows, columns])
    return result


def mean_of_parts(
    distances: Iterable[Float[Tensor, "q g"]],
    shown: tuple[Float[Tensor, "q p"], Float[Tensor, "g p"]],
    visibility: Visibility,
    out: Float[Tensor, "q g"],
) -> None:
    """Write into `out` what `part_distance` says of parts that are so far apart.

    Args:
        distances: of each part in turn, finite; written over.
        shown: 1 where queries, and gallery people, show a part, else 0.
        visibility: which parts count.
        out: where to write.
    """
    query_shows, gallery_shows = shown
    common = torch.zeros_like(out) if visibility in ("common", "authors") else None
    alone = torch.zeros_like(out) if visibility != "common" else None
    for part, distance in enumerate(distances):
        if visibility != "ignore":
            distance.mul_(query_shows[:, part, None])
        if alone is not None:
            alone.add_(distance)
        if common is not None:
            common.addcmul_(distance, gallery_shows[None, :, part])
    if visibility == "ignore":
        assert alone is not None
        torch.div(alone, query_shows.shape[1], out=out)
        return
    if alone is not None:
        # 0 / 0 is "no part counts": infinitely far; the authors' sum leaves that to its other half.
        alone.div_(query_shows.sum(1, keepdim=True)).nan_to_num_(nan=0.0 if visibility == "authors" else torch.inf)
    if common is not None:
        without = NO_COMMON_PART_AUTHORS if visibility == "authors" else torch.inf
        common.div_(query_shows @ gallery_shows.T).nan_to_num_(nan=without)
    pieces = [piece for piece in (alone, common) if piece is not None]
    out.copy_(pieces[0] if len(pieces) == 1 else pieces[0].add_(pieces[1]))


def common_part_count(query: Bool[Tensor, "q p"], gallery: Bool[Tensor, "g p"]) -> Float[Tensor, "q g"]:
    """How many parts each pair shows in common, 0..p."""
    return query.float() @ gallery.float().T


def visible_mean(
    distances: Float[Tensor, "p q g"], shown: Bool[Tensor, "p q g"], *, otherwise: float = torch.inf
) -> Float[Tensor, "q g"]:
    """The mean of the parts' distances over the parts that count, differentiable; `otherwise` where none counts."""
    count = shown.sum(0)
    total = (distances * shown).sum(0)
    return torch.where(count > 0, total / count.clamp(min=1), otherwise)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _part_distances(
    pairs: Iterable[tuple[Float[Tensor, "r d"], Float[Tensor, "c d"]]],
    metric: Metric,
    counted: tuple[Float[Tensor, "r p"], Float[Tensor, "c p"]] | None,
) -> Iterator[Float[Tensor, "r c"]]:
    """Part by part; features of one may be gone when the next come. Only pairs that show it in `counted` count."""
    for part, (query, gallery) in enumerate(pairs):
        if metric == "cosine":
            yield (query @ gallery.T).neg_().add_(1).clamp_(min=0)
        else:
            yield _euclidean(query, gallery, counted and (counted[0][:, part] > 0, counted[1][:, part] > 0))


def _euclidean(
    query: Float[Tensor, "r d"],
    gallery: Float[Tensor, "c d"],
    counted: tuple[Bool[Tensor, " r"], Bool[Tensor, " c"]] | None = None,
) -> Float[Tensor, "r c"]:
    """Lengths of differences by one matrix product; other pairs than those counted need no last digits.

    Where nearly equal vectors cancel, rows and columns are multiplied again in double precision: a whole block and not
    pair by pair, for there may be many. What the network says of a part it did not see is the same for everybody.
    """
    squared = _squared_differences(query, gallery)
    if bool(squared.amin() < _CANCELLATION):
        close = squared < _CANCELLATION
        if counted is not None:
            close &= counted[0][:, None] & counted[1]
        rows, columns = close.any(1).nonzero()[:, 0], close.any(0).nonzero()[:, 0]
        again = _squared_differences(query[rows].double(), gallery[columns].double())
        squared[rows[:, None], columns] = again.to(squared.dtype)
    return squared.clamp_(min=0).sqrt_()


def _squared_differences(query: Float[Tensor, "r d"], gallery: Float[Tensor, "c d"]) -> Float[Tensor, "r c"]:
    """|a - b|^2 = |a|^2 + |b|^2 - 2 ab."""
    # As norms, for `square` would write everybody's features down once more, which a single query waits for.
    offsets, lengths = (torch.linalg.vector_norm(side, dim=1).square_() for side in (query, gallery))
    return torch.addmm(offsets[:, None], query, gallery.T, alpha=-2).add_(lengths)


def _check(query: PartFeatures, gallery: PartFeatures, metric: str, visibility: str) -> None:
    if query.features.shape[1:] != gallery.features.shape[1:]:
        shapes = [tuple(side.features.shape[1:]) for side in (query, gallery)]
        raise ValueError(f"query and gallery differ in (parts, dimensions): {shapes[0]} and {shapes[1]}")
    if metric not in get_args(Metric):
        raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}")
    if visibility not in get_args(Visibility):
        raise ValueError(f"unknown visibility {visibility!r}: choose one of {', '.join(get_args(Visibility))}")
