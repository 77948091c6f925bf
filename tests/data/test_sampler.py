from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.data.sampler import IdentitySampler, generator_for


@st.composite
def samplers(draw: st.DrawFn) -> IdentitySampler:
    """Any data set of up to 12 identities with up to 6 images each, in any order."""
    counts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shuffled = torch.tensor(draw(st.permutations(labels)))
    identities = draw(st.integers(1, len(counts)))
    return IdentitySampler(shuffled, identities, draw(st.integers(1, 5)), draw(st.integers(0, 1 << 40)))


def sampler(images_of_each: list[int], identities: int, images: int, seed: int = 0) -> IdentitySampler:
    labels = torch.arange(len(images_of_each)).repeat_interleave(torch.tensor(images_of_each))
    return IdentitySampler(labels, identities, images, seed)


@given(samplers(), st.integers(0, 500))
@settings(deadline=None)
def test_every_batch_is_p_identities_of_k_images(given_sampler: IdentitySampler, epoch: int) -> None:
    batches = given_sampler.epoch(epoch)
    p, k = given_sampler.identities, given_sampler.images
    assert batches.shape == (given_sampler.batches_per_epoch, p * k)
    assert given_sampler.batches_per_epoch == given_sampler.identity_count // p
    chosen: list[int] = []
    for batch in batches:
        labels = given_sampler.labels[batch].view(p, k)
        assert bool((labels == labels[:, :1]).all())  # identity by identity: processes can share a batch by halves
        assert len(set(labels[:, 0].tolist())) == p
        chosen += labels[:, 0].tolist()
        for rows in batch.view(p, k):
            owned = int((given_sampler.labels == given_sampler.labels[rows[0]]).sum())
            if owned >= k:
                assert len(set(rows.tolist())) == k  # no image twice while there are others
    assert len(set(chosen)) == len(chosen)  # nobody comes twice in an epoch


@given(samplers(), st.integers(0, 500))
@settings(deadline=None)
def test_an_epoch_is_a_pure_function(given_sampler: IdentitySampler, epoch: int) -> None:
    same = IdentitySampler(
        given_sampler.labels.clone(), given_sampler.identities, given_sampler.images, given_sampler.seed
    )
    same.epoch(epoch + 1)
    torch.rand(3)
    assert torch.equal(given_sampler.epoch(epoch), same.epoch(epoch))


def test_epochs_and_seeds_differ() -> None:
    drawn = {
        tuple(sampler([4] * 20, 5, 2, seed).epoch(epoch).flatten().tolist())
        for seed in (0, 1, 1 << 32)
        for epoch in (0, 1)
    }
    assert len(drawn) == 6


def test_market_has_46_batches_and_drops_15_identities() -> None:
    """authors_code.md: 751 identities, batches of 16, an epoch is 46 of them."""
    market = sampler([17] * 751, 16, 4)
    batches = market.epoch(0)
    assert batches.shape == (46, 64)
    assert len(market.labels[batches].unique()) == 736


def test_over_the_epochs_everybody_comes_and_everything_is_seen() -> None:
    chosen = sampler([3, 7, 1, 5, 9], 2, 2)
    rows = torch.cat([chosen.epoch(epoch).flatten() for epoch in range(200)])
    times = torch.bincount(rows, minlength=25).float()
    assert bool((times > 0).all())
    # 200 epochs x 2 batches x 2 identities = 800 places over 5 identities: 160 each, give or take 4 deviations.
    by_identity = torch.bincount(chosen.labels[rows], minlength=5) / 2
    assert bool(((by_identity - 160).abs() < 4 * (200 * 0.8 * 0.2) ** 0.5).all())
    # Within an identity, no image is favoured.
    for label in range(5):
        mine = times[chosen.labels == label]
        assert bool(((mine - mine.mean()).abs() < 5 * mine.mean().sqrt()).all())


def test_an_identity_with_few_images_fills_up_by_repeating_them() -> None:
    few = sampler([1, 2, 8], 3, 4)
    for epoch in range(20):
        rows = few.epoch(epoch)[0]
        assert few.labels[rows].bincount().tolist() == [4, 4, 4]
        assert set(rows[few.labels[rows] == 0].tolist()) == {0}
        assert set(rows[few.labels[rows] == 1].tolist()) <= {1, 2}


@pytest.mark.parametrize(
    ("identities", "images", "words"), [(0, 4, "at least one"), (2, 0, "at least one"), (4, 1, "3")]
)
def test_batches_that_cannot_be_drawn_are_refused(identities: int, images: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampler([2, 2, 2], identities, images)


def test_generators_of_different_places_are_strangers() -> None:
    places: list[tuple[int | str, ...]] = [
        (), (0, 0), (0, 1), (1, 0), (1 << 32, 0), (0, 1 << 32),
        ("reid", 0), ("human", 0), ("reid", 0, 1), ("reid", 1, 0),
    ]  # fmt: skip

    def numbers(seed: int, place: tuple[int | str, ...]) -> Tensor:
        return torch.rand(4, generator=generator_for(seed, *place))

    seen = {tuple(numbers(seed, place).tolist()) for seed in (0, 1, 1 << 32) for place in places}
    assert len(seen) == 3 * len(places)
    assert torch.equal(numbers(3, ("reid", 7)), numbers(3, ("reid", 7)))
