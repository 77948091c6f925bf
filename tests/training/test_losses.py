"""Losses and their gradients against Eq. 2-9, written here as float64 loops; gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.training.losses import identity_loss, parsing_loss, triplet_loss

Array = np.ndarray
STEP = 1e-6


def eq_2(logits: Array, identity: Array, visibility: Array, average: str) -> float:
    total = 0.0
    b, p, _ = logits.shape
    for j in range(p):
        part = 0.0
        for i in range(b):
            if visibility[i, j]:
                shifted = logits[i, j] - logits[i, j].max()
                part -= shifted[identity[i]] - np.log(np.exp(shifted).sum())
        total += part / b if average == "batch" else part / (visibility[:, j].sum() + 1e-12)
    return total


def eq_4(features: Array, visibility: Array, one: int, other: int) -> float | None:
    """Mean distance over common parts; None where the paper says minus or plus infinity."""
    lengths = [
        np.sqrt(((features[one, j] - features[other, j]) ** 2).sum())
        for j in range(features.shape[1])
        if visibility[one, j] and visibility[other, j]
    ]
    return float(np.mean(lengths)) if lengths else None


def eq_3_and_5(features: Array, visibility: Array, identity: Array, margin: float) -> float:
    total = 0.0
    b = len(features)
    for anchor in range(b):
        positive, negative = -np.inf, np.inf
        for other in range(b):
            apart = eq_4(features, visibility, anchor, other)
            if apart is None:
                continue
            if identity[anchor] == identity[other]:
                positive = max(positive, apart)
            else:
                negative = min(negative, apart)
        total += max(0.0, margin + positive - negative)
    return total / b


def authors_triplet(features: Array, visibility: Array, identity: Array, margin: float) -> float:
    """The authors' arithmetic: ten thousand in the place of infinity, small constants against divisions by 0."""
    squared = ((features[:, None] - features[None]) ** 2).sum(-1).clip(min=1e-12)
    common = (visibility[:, None] & visibility[None]).astype(float)
    apart = (np.sqrt(squared) * common).sum(-1) / (common.sum(-1) + 1e-8)
    same, comparable = identity[:, None] == identity[None], common.sum(-1) > 0
    positive = np.where(same, np.where(comparable, apart, -10_000.0), -np.inf).max(1)
    negative = np.where(same, np.inf, np.where(comparable, apart, 10_000.0)).min(1)
    return float(np.maximum(0, margin + positive - negative).mean())


def eq_6_to_8(logits: Array, target: Array) -> Array:
    """The focal loss of every cell."""
    r, t = 1 / (1 + np.exp(-logits)), target.astype(float)
    log_r, log_not_r = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)  # log r, log (1 - r)
    entropy = -(t * log_r + (1 - t) * log_not_r)
    psi = (1 - r) * t + r * (1 - t)
    eta = (0.25 * t + 0.75 * (1 - t)) * psi**2
    return eta * entropy


def eq_9(logits: Array, part_map: Array, average: str) -> float:
    """Eq. 9; an absent part counts as large as it is on average in the other images, or as an even share."""
    b, p, h, w = logits.shape
    total = 0.0
    for j in range(p):
        target = part_map == j + 1
        sizes = [int(target[i].sum()) for i in range(b)]
        present = [size for size in sizes if size]
        typical = np.mean(present) if present else h * w / (p + 1)
        if average == "batch":
            total += sum(eq_6_to_8(logits[i, j], target[i]).sum() for i in range(b)) / (sum(sizes) or typical)
        else:
            total += sum(eq_6_to_8(logits[i, j], target[i]).sum() / (sizes[i] or typical) for i in range(b)) / b
    return float(total)


def slope(value: Callable[[Array], float], at: Array) -> Array:
    """The gradient by central differences, in float64."""
    result = np.empty_like(at)
    for place in np.ndindex(*at.shape):
        moved = at.copy()
        moved[place] += STEP
        above = value(moved)
        moved[place] -= 2 * STEP
        result[place] = (above - value(moved)) / (2 * STEP)
    return result


def check(loss: Callable[[Tensor], Tensor], value: Callable[[Array], float], at: Array) -> None:
    """Value and gradient of a loss in float32 against its equation in float64."""
    at = at.astype(np.float32).astype(np.float64)
    entering = torch.from_numpy(at).float().requires_grad_()
    result = loss(entering)
    assert result.dtype == torch.float32
    result.backward()
    assert entering.grad is not None
    np.testing.assert_allclose(result.item(), value(at), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entering.grad.double().numpy(), slope(value, at), rtol=1e-5, atol=1e-5)


def visible(b: int, random: np.random.Generator, share: float = 0.7) -> Array:
    return random.random((b, 4)) < share


# Identification loss, Eq. 2


@pytest.mark.parametrize("average", ["batch", "visible"])
@pytest.mark.parametrize("seed", range(4))
def test_identity_loss_equals_eq_2(average: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, identity, seen = 3 * random.normal(size=(7, 4, 5)), random.integers(0, 5, 7), visible(7, random)
    seen[:, 2] &= seed % 2 == 0  # in every other case nobody shows part 2
    identities, shown = torch.from_numpy(identity), torch.from_numpy(seen)
    check(
        lambda given: identity_loss(given, identities, shown, average),
        lambda given: eq_2(given, identity, seen, average),
        logits,
    )


def test_identity_loss_by_hand() -> None:
    # Even logits over c = 4 classes: -log(1/4) for each visible part.
    logits, identity = torch.zeros(2, 4, 4), torch.tensor([0, 3])
    seen = torch.tensor([[True, True, True, False], [True, False, False, False]])
    log_4 = np.log(4)
    assert identity_loss(logits, identity, seen).item() == pytest.approx(4 * log_4 / 2)
    assert identity_loss(logits, identity, seen, "visible").item() == pytest.approx(3 * log_4)


def test_hidden_parts_send_no_gradient() -> None:
    random = np.random.default_rng(5)
    logits = torch.from_numpy(random.normal(size=(6, 4, 3))).float().requires_grad_()
    seen = torch.from_numpy(visible(6, random))
    for average in ("batch", "visible"):
        (gradient,) = torch.autograd.grad(identity_loss(logits, torch.arange(6) % 3, seen, average), logits)
        assert torch.equal(gradient.abs().sum(-1) > 0, seen)
    features = torch.from_numpy(random.normal(size=(6, 4, 3))).float().requires_grad_()
    (gradient,) = torch.autograd.grad(triplet_loss(features, seen, torch.arange(6) % 2, margin=100.0), features)
    assert not gradient[~seen].any()
    assert gradient[seen].any()


# Triplet loss, Eq. 3-5


@pytest.mark.parametrize("seed", range(8))
def test_triplet_loss_equals_eq_3_to_5(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, seen = random.normal(size=(8, 4, 5)), visible(8, random, 0.4 if seed % 2 else 0.8)
    identity = np.array([3, 3, 3, -1, -1, 900, 900, 5])  # 5 is seen once
    margin = [0.3, 1.5, 4.0, 0.0][seed % 4]
    shown, identities = torch.from_numpy(seen), torch.from_numpy(identity)
    check(
        lambda given: triplet_loss(given, shown, identities, margin),
        lambda given: eq_3_and_5(given, seen, identity, margin),
        features,
    )


@pytest.mark.parametrize("seed", range(6))
def test_triplet_loss_equals_the_authors(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, seen = random.normal(size=(12, 4, 7)), visible(12, random, 0.35)
    identity = np.repeat(np.arange(4), 3)
    loss = triplet_loss(torch.from_numpy(features).float(), torch.from_numpy(seen), torch.from_numpy(identity))
    assert loss.item() == pytest.approx(authors_triplet(features, seen, identity, 0.3), abs=1e-5)


def test_triplet_loss_keeps_the_digits_of_close_pairs() -> None:
    """Long features, short differences: as a network gives that begins to succeed, or to collapse."""
    random = np.random.default_rng(7)
    centre = 20 + random.normal(size=(1, 4, 64))
    features = (centre + 1e-2 * random.normal(size=(8, 4, 64))).astype(np.float32).astype(np.float64)
    identity, seen = np.repeat(np.arange(4), 2), np.ones((8, 4), dtype=bool)
    entering = torch.from_numpy(features).float().requires_grad_()
    loss = triplet_loss(entering, torch.from_numpy(seen), torch.from_numpy(identity))
    loss.backward()
    assert loss.item() == pytest.approx(eq_3_and_5(features, seen, identity, 0.3), abs=1e-6)
    exact = torch.from_numpy(features).requires_grad_()
    # The same selection in float64, one pair at a time.
    violations = []
    for i in range(8):
        apart = [(exact[i] - exact[k]).norm(dim=-1).mean() for k in range(8) if k != i]
        others = [k for k in range(8) if k != i]
        positive = next(apart[n] for n, k in enumerate(others) if identity[k] == identity[i])
        negative = min((apart[n] for n, k in enumerate(others) if identity[k] != identity[i]), key=Tensor.item)
        violations.append((0.3 + positive - negative).clamp(min=0))
    torch.stack(violations).mean().backward()
    assert entering.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(entering.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_triplet_loss_by_hand() -> None:
    """Two people, two photos each, on a line; part 1 is seen in the photos at 0 and 10 alone."""
    features = torch.zeros(4, 2, 1)
    features[:, 0, 0] = torch.tensor([0.0, 1.0, 3.0, 10.0])
    features[:, 1, 0] = torch.tensor([0.0, 77.0, 77.0, 2.0])
    seen = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    identity = torch.tensor([8, 8, 9, 9])
    # anchor 0: positive 1, nearest negative 3 -> 0 ; anchor 1: positive 1, negative 2 -> 0
    # anchor 2: positive 7, negative 2 -> 5.3 ; anchor 3: positive 7, negatives (10 + 2) / 2 = 6 and 9 -> 1.3
    assert triplet_loss(features, seen, identity).item() == pytest.approx((5.3 + 1.3) / 4, abs=1e-6)


def test_an_incomparable_pair_is_never_the_hardest() -> None:
    features = torch.tensor([[0.0, 0.0], [50.0, 50.0], [0.0, 0.0], [1.0, 0.0]])[..., None]
    # 0 and 1 are one person who shows other parts in each; 2 is another, as near as can be, but shows part 1 alone.
    seen = torch.tensor([[True, False], [False, True], [False, True], [True, True]])
    identity = torch.tensor([1, 1, 2, 3])
    # 0: positive itself (0), negative 3 (1). 1: itself, 2 and 3 at 50. 2: itself, 3 at 0. 3: itself, 0 at 1, 2 at 0.
    assert triplet_loss(features, seen, identity).item() == pytest.approx((0.0 + 0.0 + 0.3 + 0.3) / 4, abs=1e-5)


def test_a_batch_without_any_common_part() -> None:
    features = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = triplet_loss(features, torch.eye(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_twins_have_a_finite_gradient() -> None:
    """The root's slope is infinite at 0; equal photos of one person, and of two, must not break a training."""
    features = torch.ones(4, 4, 3, requires_grad=True)
    loss = triplet_loss(features, torch.ones(4, 4, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(0.3, abs=1e-5)
    assert features.grad is not None
    assert features.grad.isfinite().all()


# Human parsing loss, Eq. 6-9


def whole_map(b: int, random: np.random.Generator) -> Array:
    """Part maps in which every part is to be seen, each of another size."""
    part_map = random.integers(0, 5, (b, 5, 4)).astype(np.uint8)
    part_map[:, 0] = [1, 2, 3, 4]
    return part_map


@pytest.mark.parametrize("average", ["image", "batch"])
@pytest.mark.parametrize("seed", range(3))
def test_parsing_loss_equals_eq_6_to_9(average: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, part_map = 3 * random.normal(size=(3, 4, 5, 4)), whole_map(3, random)
    if seed == 1:
        part_map[0][part_map[0] == 2] = 0  # one image lacks the torso
    if seed == 2:
        part_map[part_map == 4] = 0  # nobody shows lower legs
    maps = torch.from_numpy(part_map)
    check(
        lambda given: parsing_loss(given, maps, average),
        lambda given: eq_9(given, part_map, average),
        logits,
    )


def test_parsing_loss_by_hand() -> None:
    """Even odds everywhere: a cell costs log 2 / 4, times 1/4 inside the part and 3/4 outside."""
    part_map = torch.zeros(2, 2, 4, dtype=torch.uint8)
    part_map[0, 0] = torch.tensor([1, 2, 3, 4])
    part_map[1] = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    cell = np.log(2) / 4
    small, large = (0.25 * 1 + 0.75 * 7) * cell, (0.25 * 2 + 0.75 * 6) * cell
    logits = torch.zeros(2, 4, 2, 4)
    assert parsing_loss(logits, part_map).item() == pytest.approx(4 * (small / 1 + large / 2) / 2, rel=1e-6)
    assert parsing_loss(logits, part_map, "batch").item() == pytest.approx(4 * (small + large) / 3, rel=1e-6)


@pytest.mark.parametrize("average", ["image", "batch"])
def test_an_absent_part_is_learnt_not_to_be_there(average: Any) -> None:
    part_map = torch.from_numpy(whole_map(2, np.random.default_rng(0)))
    part_map[part_map == 1] = 0
    logits = torch.zeros(2, 4, 5, 4, requires_grad=True)
    loss = parsing_loss(logits, part_map, average)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all(), "logits of the absent part must be pushed down"
    # No louder than the parts that are there: by the gradient of an even share of the picture.
    assert logits.grad[:, 0].max() <= 3 * logits.grad[:, 1:].max()


@pytest.mark.parametrize("average", ["image", "batch"])
def test_a_batch_of_empty_maps(average: Any) -> None:
    logits = torch.zeros(2, 4, 6, 2, requires_grad=True)
    loss = parsing_loss(logits, torch.zeros(2, 6, 2, dtype=torch.uint8), average)
    loss.backward()
    assert 0 < loss.item() < np.inf
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# All of them


def finite(loss: Tensor, entering: Tensor) -> None:
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss >= 0
    assert entering.grad is not None
    assert entering.grad.isfinite().all()


@pytest.mark.parametrize("height", [100.0, -100.0, 1e4])
def test_large_logits_stay_finite_and_right(height: float) -> None:
    random = np.random.default_rng(8)
    signs = random.choice([-1.0, 1.0], (3, 4, 5))
    identity, seen = random.integers(0, 5, 3), visible(3, random)
    for average in ("batch", "visible"):
        logits = torch.from_numpy(height * signs).float().requires_grad_()
        loss = identity_loss(logits, torch.from_numpy(identity), torch.from_numpy(seen), average)
        finite(loss, logits)
        assert loss.item() == pytest.approx(eq_2(height * signs, identity, seen, average), rel=1e-5)
    cells, part_map = random.choice([-100.0, 100.0], (3, 4, 5, 4)), whole_map(3, random)
    for average in ("image", "batch"):
        logits = torch.from_numpy(cells).float().requires_grad_()
        loss = parsing_loss(logits, torch.from_numpy(part_map), average)
        finite(loss, logits)
        assert loss.item() == pytest.approx(eq_9(cells, part_map, average), rel=1e-5)


def test_a_batch_of_one() -> None:
    random = np.random.default_rng(9)
    seen = torch.tensor([[True, False, True, True]])
    logits = torch.from_numpy(random.normal(size=(1, 4, 6))).float().requires_grad_()
    for average in ("batch", "visible"):
        finite(identity_loss(logits, torch.tensor([2]), seen, average), logits)
    features = torch.from_numpy(random.normal(size=(1, 4, 6))).float().requires_grad_()
    loss = triplet_loss(features, seen, torch.tensor([2]))
    finite(loss, features)
    assert loss.item() == 0, "there is nobody to push away from"
    cells = torch.from_numpy(random.normal(size=(1, 4, 3, 2))).float().requires_grad_()
    for average in ("image", "batch"):
        finite(parsing_loss(cells, torch.tensor([[[0, 1], [2, 2], [0, 0]]]), average), cells)


def test_nobody_shows_anything() -> None:
    seen = torch.zeros(3, 4, dtype=torch.bool)
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for loss in (
        identity_loss(features, torch.tensor([0, 1, 4]), seen),
        identity_loss(features, torch.tensor([0, 1, 4]), seen, "visible"),
        triplet_loss(features, seen, torch.tensor([0, 0, 1])),
    ):
        finite(loss, features)
        assert loss.item() == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([0.0, 0.2, 0.6, 1.0]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_batch_is_finite_and_equals_the_equations(seed: int, b: int, share: float, alone: bool) -> None:
    random = np.random.default_rng(seed)
    seen, identity = visible(b, random, share), random.integers(0, b if alone else 3, b)
    values = random.normal(size=(b, 4, 9)).astype(np.float32)
    entering = torch.from_numpy(values).requires_grad_()
    shown, identities = torch.from_numpy(seen), torch.from_numpy(identity)
    for average in ("batch", "visible"):
        loss = identity_loss(entering, identities, shown, average)
        finite(loss, entering)
        assert loss.item() == pytest.approx(eq_2(values.astype(float), identity, seen, average), abs=1e-5)
    loss = triplet_loss(entering, shown, identities)
    finite(loss, entering)
    assert loss.item() == pytest.approx(eq_3_and_5(values.astype(float), seen, identity, 0.3), abs=1e-5)
    part_map = random.integers(0, 5, (b, 3, 3)) * (random.random((b, 3, 3)) < share)
    for average in ("image", "batch"):
        loss = parsing_loss(entering.view(b, 4, 3, 3), torch.from_numpy(part_map), average)
        finite(loss, entering)
        wanted = eq_9(values.astype(float).reshape(b, 4, 3, 3), part_map, average)
        assert loss.item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_and_names_of_people_do_not_matter(seed: int, mixer: Any) -> None:
    random = np.random.default_rng(seed)
    values, seen = random.normal(size=(8, 4, 6)).astype(np.float32), visible(8, random)
    identity = random.integers(0, 4, 8)
    order = mixer.sample(range(8), 8)
    renamed = np.array([-7, 12, 3, 5000])[identity]
    plain = triplet_loss(*map(torch.from_numpy, (values, seen, identity)))
    moved = triplet_loss(*map(torch.from_numpy, (values[order], seen[order], renamed[order])))
    assert moved.item() == pytest.approx(plain.item(), abs=1e-6)
    one = identity_loss(*map(torch.from_numpy, (values, identity, seen)))
    other = identity_loss(*map(torch.from_numpy, (values[order], identity[order], seen[order])))
    assert other.item() == pytest.approx(one.item(), abs=1e-5)


def test_half_precision_features_are_measured_in_float32() -> None:
    random = np.random.default_rng(10)
    features, seen = torch.from_numpy(random.normal(size=(6, 4, 32))).bfloat16(), torch.ones(6, 4, dtype=torch.bool)
    identity = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = triplet_loss(features, seen, identity, margin=2.0)
    assert loss.dtype == torch.float32
    wanted = eq_3_and_5(features.double().numpy(), seen.numpy(), identity.numpy(), 2.0)
    assert loss.item() == pytest.approx(wanted, abs=1e-5)


# Label smoothing (Szegedy et al. 2016)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_targets_share_out_what_they_lose(smoothing: float) -> None:
    random = np.random.default_rng(3)
    logits, shows, identity = random.normal(size=(5, 4, 6)), visible(5, random), random.integers(0, 6, 5)

    def smoothed(at: Array) -> float:
        log_share = at - np.logaddexp.reduce(at, axis=-1, keepdims=True)
        target = np.full((5, 6), smoothing / 6) + (1 - smoothing) * np.eye(6)[identity]
        return float((-(target[:, None] * log_share).sum(-1) * shows).sum() / 5)

    people, seen = torch.from_numpy(identity), torch.from_numpy(shows)
    check(lambda at: identity_loss(at, people, seen, smoothing=smoothing), smoothed, logits)
