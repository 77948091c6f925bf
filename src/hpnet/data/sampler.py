"""P x K sampling: batches of P identities with K images each (Section 4.1: 16 x 4).

A batch is a pure function of (seed, epoch, place), so training can stop and go on anywhere without keeping a sampler's
state. An epoch is one pass over the identities, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import torch
from jaxtyping import Int64
from torch import Tensor


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """A generator that depends on the seed and the place in the run, and on nothing else.

    They are hashed because torch's generator looks at the lowest 32 bits of its seed only.
    """
    digest = sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


@dataclass(frozen=True)
class IdentitySampler:
    """Which images make up each batch.

    Attributes:
        labels: (n) identity of each image, 0..c-1, every one present.
        identities: P, identities in a batch.
        images: K, images of each; an identity with fewer is drawn from with repetition.
        seed: decides all.
    """

    labels: Int64[Tensor, " n"]
    identities: int = 16
    images: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        count = self.identity_count
        if min(self.identities, self.images) < 1:
            raise ValueError("a batch needs at least one identity and one image of each")
        if count < self.identities:
            raise ValueError(f"a batch of {self.identities} identities cannot be drawn from {count}: lower it")

    @cached_property
    def identity_count(self) -> int:
        """How many identities c there are."""
        return len(self.labels.unique(sorted=False))  # type: ignore[no-untyped-call]

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in a pass over the identities; the rest is dropped."""
        return self.identity_count // self.identities

    def epoch(self, number: int) -> Int64[Tensor, "batches PK"]:
        """Row numbers of the images of every batch of an epoch, identity by identity."""
        generator = generator_for(self.seed, "epoch", number)
        order = torch.randperm(self.identity_count, generator=generator)
        order = order[: self.batches_per_epoch * self.identities]
        by_identity = self._rows_by_identity()
        drawn = torch.stack([self._draw(by_identity[label], generator) for label in order.tolist()])
        return drawn.view(self.batches_per_epoch, self.identities * self.images)

    def _draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        if len(rows) >= self.images:
            return rows[torch.randperm(len(rows), generator=generator)[: self.images]]
        return rows[torch.randint(len(rows), (self.images,), generator=generator)]

    def _rows_by_identity(self) -> tuple[Tensor, ...]:
        order = self.labels.argsort(stable=True)
        return torch.split(order, torch.bincount(self.labels).tolist())
