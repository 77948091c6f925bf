"""Templates: views of one person put together, part by part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpnet.distance import part_distance
from hpnet.parts import PartFeatures
from hpnet.tracklets import Tracklet, template

P, D = 4, 6


def people(seed: int, count: int, shows: torch.Tensor | None = None) -> PartFeatures:
    """Random views; what a view does not show holds a unit vector all the same, as the network gives it."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, P, D, generator=generator)
    features /= features.norm(dim=-1, keepdim=True)
    visibility = torch.rand(count, P, generator=generator) < 0.5 if shows is None else shows
    return PartFeatures(features, visibility)


@st.composite
def tracks(draw: st.DrawFn, least: int = 1) -> PartFeatures:
    return people(draw(st.integers(0, 2**31)), draw(st.integers(least, 12)))


def assert_same(one: PartFeatures, other: PartFeatures) -> None:
    assert torch.equal(one.visibility, other.visibility)
    torch.testing.assert_close(one.features, other.features, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(tracks())
def test_a_part_is_the_direction_of_the_mean_of_the_views_that_show_it(views: PartFeatures) -> None:
    made = template(views)
    for part in range(P):
        seen = [row.features[0, part] for row in views if row.visibility[0, part]]
        if seen:
            mean = torch.stack(seen).mean(0)
            torch.testing.assert_close(made.features[0, part], mean / mean.norm(), rtol=0, atol=1e-5)
        else:
            assert not made.features[0, part].any()


@settings(deadline=None)
@given(tracks())
def test_visible_parts_are_the_union_and_have_unit_length(views: PartFeatures) -> None:
    made = template(views)
    assert torch.equal(made.visibility, views.visibility.any(0)[None])
    torch.testing.assert_close(made.features.norm(dim=-1), made.visibility.float())


@settings(deadline=None)
@given(tracks(), st.randoms(use_true_random=False))
def test_the_order_of_views_does_not_matter(views: PartFeatures, chance: object) -> None:
    order = list(range(len(views)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    assert_same(template(views[order]), template(views))


@settings(deadline=None)
@given(tracks(), st.integers(0, P - 1), st.integers(0, 2**31))
def test_a_view_without_a_part_changes_nothing_of_it(views: PartFeatures, part: int, seed: int) -> None:
    shows = torch.ones(3, P, dtype=torch.bool)
    shows[:, part] = False
    more = PartFeatures.concatenate([views, people(seed, 3, shows)])
    before, after = template(views), template(more)
    assert torch.equal(after.features[0, part], before.features[0, part])
    assert after.visibility[0, part] == before.visibility[0, part]


@settings(deadline=None)
@given(tracks())
def test_a_single_view_is_itself(views: PartFeatures) -> None:
    alone = template(views[0])
    shown = views.visibility[0]
    assert torch.equal(alone.visibility[0], shown)
    torch.testing.assert_close(alone.features[0, shown], views.features[0, shown], rtol=0, atol=1e-6)
    assert not alone.features[0, ~shown].any()


@settings(deadline=None)
@given(tracks(least=2), st.integers(1, 11))
def test_views_may_come_bit_by_bit(views: PartFeatures, cut: int) -> None:
    assume(cut < len(views))
    tracklet = Tracklet()
    tracklet.see(views[:cut])
    tracklet.see(views[cut:])
    assert tracklet.views == len(views)
    assert_same(tracklet.template(), template(views))


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_partial_views_complete_each_other(seed: int) -> None:
    whole = people(seed, 1, torch.ones(1, P, dtype=torch.bool))
    upper, lower = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]])
    # What the network says of a hidden part is noise: each half view carries its own.
    halves = [
        PartFeatures(torch.where(shown[..., None], whole.features, people(seed + n, 1).features), shown)
        for n, shown in enumerate((upper, lower), start=1)
    ]
    assert part_distance(*halves).item() == torch.inf
    made = template(PartFeatures.concatenate(halves))
    assert_same(made, whole)
    assert part_distance(whole, made).item() == pytest.approx(0, abs=1e-3)


def test_the_mean_is_nearer_to_the_person_than_its_views_are() -> None:
    person = people(0, 1, torch.ones(1, P, dtype=torch.bool))
    noisy = person.features + 0.4 * torch.randn(20, P, D, generator=torch.Generator().manual_seed(1))
    views = PartFeatures(noisy / noisy.norm(dim=-1, keepdim=True), torch.ones(20, P, dtype=torch.bool))
    assert part_distance(person, template(views)).item() < part_distance(person, views).min().item()


def test_views_that_cancel_leave_a_part_unseen() -> None:
    one = people(0, 1, torch.ones(1, P, dtype=torch.bool))
    opposite = one.features.clone()
    opposite[0, 2] *= -1
    made = template(PartFeatures.concatenate([one, PartFeatures(opposite, one.visibility)]))
    assert made.visibility.tolist() == [[True, True, False, True]]
    assert not made.features[0, 2].any()


def test_half_precision_views_make_a_full_precision_template() -> None:
    views = people(3, 5)
    made = template(views.to(torch.float16))
    assert made.features.dtype == torch.float32
    torch.testing.assert_close(made.features, template(views).features, rtol=0, atol=2e-3)


def test_without_a_view_there_is_no_template() -> None:
    with pytest.raises(ValueError, match="at least one view"):
        template(people(0, 0))
    with pytest.raises(ValueError, match="at least one view"):
        Tracklet().template()


def test_views_of_other_sizes_are_refused() -> None:
    tracklet = Tracklet()
    tracklet.see(people(0, 1))
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(4, 3\)"):
        tracklet.see(PartFeatures(torch.nn.functional.normalize(torch.ones(1, P, 3), dim=-1), torch.ones(1, P) > 0))
