"""The field's protocols as a table: which photos are queries, what does not count, how is ranked and scored.

In: a protocol's name. Out: a `Protocol` row, and the masks it implies. A protocol is chosen by name, never by changing
code; every row says what was published under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from hpnet.data.occluders import KINDS
from hpnet.data.reid import JUNK, VALIDATION_IDENTITIES, Identity, Person
from hpnet.distance import Metric, Visibility
from hpnet.evaluation.metrics import AveragePrecision, Ties

Published = dict[str, dict[str, float]]

SHOT_TRIALS: Final = 100  # repetitions of the single-gallery-shot setting in the authors' code


@dataclass(frozen=True)
class Protocol:
    """One way to judge.

    Attributes:
        name: what `--protocol` takes.
        data_set: a key of `hpnet.data.reid.DATA_SETS`.
        query: split of the queries.
        gallery: split of the gallery; junk (Market-1501's identity -1) is left out.
        held_out: judge on the last so many identities of one training split instead: see `hpnet.data.reid.hold_out`.
        trials: 0 = multi-gallery-shot; otherwise single-gallery-shot, one random photo per gallery identity for each
            query, so many times (seeded); mean and standard deviation are reported.
        metric: how a part is compared.
        visibility: which parts count.
        ap: rule of the average precision.
        ties: who goes first at equal distance.
        occluded: kinds of `hpnet.data.occluders.KINDS`: the queries are not the split's photos, but copies of them that
            `hpnet occlude` wrote; empty = the photos themselves.
        published: what others printed under this protocol, in percent.
    """

    name: str
    data_set: str
    query: str = "query"
    gallery: str = "gallery"
    held_out: int = 0
    trials: int = 0
    metric: Metric = "euclidean"
    visibility: Visibility = "common"
    ap: AveragePrecision = "rectangle"
    ties: Ties = "worst"
    occluded: tuple[str, ...] = ()
    published: Published = field(default_factory=dict, hash=False)


def _scores(**values: float) -> dict[str, float]:
    return values


# Tables 2-4 of the paper; "released" are the numbers that the authors' released weights print. HPNet's come from the
# authors' code, which ranks and averages as the `-authors` rows do.
_ROWS: Final = (
    Protocol(
        "market1501",
        "market1501",
        published={
            "HPNet, released": _scores(mAP=74.6, R1=91.2, R5=97.0, R10=98.0),
            "Baseline, released": _scores(mAP=72.8, R1=90.0, R5=95.8, R10=97.1),
        },
    ),
    Protocol("market1501-validation", "market1501", query="train", gallery="train", held_out=VALIDATION_IDENTITIES),
    Protocol("market1501-occluded", "market1501", occluded=KINDS),
    Protocol(
        "market1501-validation-occluded",
        "market1501",
        query="train",
        gallery="train",
        held_out=VALIDATION_IDENTITIES,
        occluded=KINDS,
    ),
    *(Protocol(f"market1501-occluded-{kind}", "market1501", occluded=(kind,)) for kind in KINDS),
    Protocol("occluded_duke", "occluded_duke"),
    Protocol(
        "partial_reid",
        "partial_reid",
        published={
            "AMC+SWM": _scores(mAP=31.3, R1=34.3),
            "PCB": _scores(mAP=54.7, R1=56.3),
            "PGFA": _scores(mAP=61.8, R1=68.0),
            "DSR": _scores(mAP=68.1, R1=73.7),
            "FPR": _scores(mAP=76.6, R1=81.0),
            "HPNet": _scores(mAP=81.8, R1=85.7),
            "HPNet, released": _scores(mAP=81.8, R1=85.7, R5=95.0, R10=96.3),
            "Baseline, released": _scores(mAP=54.5, R1=53.3, R5=75.0, R10=86.3),
        },
    ),
    Protocol("partial_reid-partial", "partial_reid", query="query_partial"),
    Protocol(
        "partial_reid-single",
        "partial_reid",
        trials=SHOT_TRIALS,
        published={
            "AMC+SWM": _scores(R1=37.3, R3=46.0),
            "DSR": _scores(R1=56.9, R3=78.5),
            "VPM": _scores(R1=67.7, R3=81.9),
            "HPNet": _scores(R1=80.6, R3=91.7),
        },
    ),
    Protocol(
        "partial_ilids18",
        "partial_ilids18",
        published={
            "AMC+SWM": _scores(R1=21.0, R3=32.8),
            "DSR": _scores(R1=63.9, R3=74.8),
            "VPM": _scores(R1=65.5, R3=74.8),
            "HPNet": _scores(R1=68.9, R3=80.7),
            "HPNet, released": _scores(mAP=72.2, R1=68.9, R5=82.4, R10=89.1),
            "Baseline, released": _scores(mAP=53.8, R1=48.7, R5=71.4, R10=79.8),
        },
    ),
    Protocol(
        "partial_ilids19",
        "partial_ilids19",
        published={
            "AMC+SWM": _scores(mAP=31.3, R1=38.7),
            "PCB": _scores(mAP=40.2, R1=46.8),
            "DSR": _scores(mAP=58.1, R1=64.3),
            "FPR": _scores(mAP=61.8, R1=68.1),
            "HPNet": _scores(mAP=58.9, R1=72.0),
            "HPNet, released": _scores(mAP=58.9, R1=72.0, R5=85.3, R10=91.3),
            "Baseline, released": _scores(mAP=44.4, R1=53.2, R5=72.9, R10=79.8),
        },
    ),
    Protocol(
        "occluded_reid",
        "occluded_reid",
        published={
            "AMC+SWM": _scores(mAP=27.3, R1=31.1),
            "PCB": _scores(mAP=38.9, R1=41.3),
            "DSR": _scores(mAP=62.8, R1=72.8),
            "FPR": _scores(mAP=68.0, R1=78.3),
            "Baseline": _scores(mAP=54.0, R1=62.1, R5=79.3, R10=85.2),
            "HPNet, test w/o vis": _scores(mAP=54.8, R1=46.4, R5=82.6, R10=94.4),
            "HPNet, share Conv5": _scores(mAP=76.3, R1=86.5, R5=93.6, R10=96.3),
            "HPNet, lambda_tri = 0": _scores(mAP=74.3, R1=84.4, R5=93.2, R10=96.0),
            "HPNet, lambda_seg^coco = 0": _scores(mAP=70.9, R1=82.4, R5=90.2, R10=93.4),
            "HPNet": _scores(mAP=77.4, R1=87.3, R5=93.9, R10=96.3),
        },
    ),
)


def _authors(row: Protocol) -> Protocol:
    return replace(row, name=f"{row.name}-authors", metric="cosine", visibility="authors", ap="trapezoid", ties="index")


# Each row as the paper's Eq. 1 and the field's average precision have it, and as the authors' code has it.
PROTOCOLS: Final[dict[str, Protocol]] = {row.name: row for plain in _ROWS for row in (plain, _authors(plain))}


def find_protocol(name: str) -> Protocol:
    """The row of that name. Raises ValueError, naming all, for an unknown one."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def masks(query: Sequence[Person], gallery: Sequence[Person]) -> tuple[Bool[Tensor, "q g"], Bool[Tensor, "q g"]]:
    """Which pairs match, and which do not count.

    A pair matches when both show the same identity. It does not count when the gallery photo is junk, or when it shows
    the query's identity as seen by the query's own camera (Zheng et al. 2015); where no camera is known, every pair
    counts.
    """
    known: dict[Identity | None, int] = {None: -1}
    query_identity, gallery_identity = (
        _numbered(known, [each.identity for each in people]) for people in (query, gallery)
    )
    cameras: dict[Identity | None, int] = {None: -1}
    query_camera, gallery_camera = (_numbered(cameras, [each.camera for each in people]) for people in (query, gallery))
    match = (query_identity[:, None] == gallery_identity) & (query_identity >= 0)[:, None]
    same_camera = (query_camera[:, None] == gallery_camera) & (query_camera >= 0)[:, None]
    junk = torch.tensor([each.identity == JUNK for each in gallery], dtype=torch.bool)
    return match & ~junk, (match & same_camera) | junk


def one_per_identity(
    ignore: Bool[Tensor, "q g"], identity: Int64[Tensor, " g"], generator: torch.Generator
) -> Bool[Tensor, "q g"]:
    """A single-gallery-shot trial: for each query one random photo of each gallery identity that may count.

    Args:
        ignore: pairs that do not count anyway.
        identity: number of each gallery photo's identity, 0..c-1.
        generator: of the trial.

    Returns:
        The pairs that do not count in this trial.
    """
    # In double precision, because two equal draws would let two photos count.
    draw = torch.rand(ignore.shape, generator=generator, dtype=torch.float64).masked_fill(ignore, -1.0)
    groups = identity.expand(ignore.shape)
    nothing = torch.full((len(ignore), int(identity.max()) + 1), -1.0, dtype=draw.dtype)
    best = nothing.scatter_reduce(1, groups, draw, "amax")
    return ignore | (draw < best.gather(1, groups))


def numbered(values: Sequence[Identity | None]) -> Int64[Tensor, " n"]:
    """Equal values get equal numbers, 0.. in order of appearance."""
    return _numbered({}, values)


def _numbered(known: dict[Identity | None, int], values: Sequence[Identity | None]) -> Int64[Tensor, " n"]:
    """Numbers that several lists share; a value that stands in `known` already keeps its own."""
    return torch.tensor([known.setdefault(value, len(known)) for value in values], dtype=torch.int64)
