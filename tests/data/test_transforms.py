from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor

from hpnet.data import transforms
from hpnet.data.transforms import Augmentation, augment, erase_parts, flip, to_cells, vary_colour

FILL = (0.486, 0.459, 0.408)
SEEDS = st.integers(0, 2**31)
PROBABILITIES = st.sampled_from([0.0, 0.3, 1.0])


def chance(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def marked(b: int, h: int = 12, w: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Photos whose red channel spells their own part map (in steps of 50), and the part maps."""
    maps = torch.randint(0, 5, (b, h, w), generator=chance(seed), dtype=torch.uint8)
    photos = torch.randint(0, 256, (b, 3, h, w), generator=chance(seed + 1), dtype=torch.uint8)
    photos[:, 0] = 50 * maps
    return photos, maps


def noise(b: int, h: int = 12, w: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, h, w, generator=chance(seed))


# --- photo and part map move together


@given(SEEDS, PROBABILITIES, PROBABILITIES)
@settings(deadline=None)
def test_photo_and_part_map_move_together(seed: int, flips: float, occlusions: float) -> None:
    photos, maps = marked(6, seed=seed)
    images, varied = augment(photos, maps, Augmentation(flips, 0.0, occlusions), chance(seed), FILL)
    fill = torch.tensor(FILL).view(3, 1, 1)
    erased = (images == fill).all(1)
    assert torch.equal((images[:, 0] * 255 / 50).round().byte()[~erased], varied[~erased])
    assert not bool(varied[erased].any())
    # What is not erased is the photo, mirrored or not; never both in one photo, and never a third thing.
    for image, gone, photo in zip(images, erased, photos.float() / 255, strict=True):
        straight, mirrored = ((image == each).all(0) | gone for each in (photo, photo.flip(-1)))
        assert bool(straight.all()) or bool(mirrored.all())


@given(SEEDS, PROBABILITIES, PROBABILITIES, PROBABILITIES)
@settings(deadline=None, max_examples=30)
def test_whatever_is_done_erased_pixels_are_exactly_the_mean(
    seed: int, flips: float, colours: float, occlusions: float
) -> None:
    """Occlusion comes last: colour touches no erased pixel, and no label of an erased part is left."""
    photos, maps = marked(6, seed=seed)
    images, varied = augment(photos, maps, Augmentation(flips, colours, occlusions), chance(seed), FILL)
    unvaried_maps = augment(photos, maps, Augmentation(flips, colours, 0.0), chance(seed), FILL)[1]
    gone = (varied == 0) & (unvaried_maps > 0)
    assert bool((images.permute(0, 2, 3, 1)[gone] == torch.tensor(FILL)).all())
    assert torch.equal(varied[~gone], unvaried_maps[~gone])
    for before, after in zip(unvaried_maps, varied, strict=True):
        lost = set(before.unique().tolist()) - set(after.unique().tolist()) - {0}
        assert len(lost) <= 2
        assert all(int((after == label).sum()) in (0, int((before == label).sum())) for label in range(1, 5))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert images.dtype == torch.float32
    assert varied.dtype == torch.uint8


def test_nothing_asked_nothing_done() -> None:
    photos, maps = marked(4)
    images, same = augment(photos, maps, Augmentation(0.0, 0.0, 0.0), chance(), FILL)
    assert torch.equal(images, photos.float() / 255)
    assert torch.equal(same, maps)


def test_what_comes_in_is_left_as_it_is() -> None:
    photos, maps = marked(8)
    before = photos.clone(), maps.clone()
    augment(photos, maps, Augmentation(1.0, 1.0, 1.0), chance(), FILL)
    assert torch.equal(photos, before[0])
    assert torch.equal(maps, before[1])
    images = noise(8)
    kept = images.clone()
    vary_colour(images, torch.ones(8, dtype=torch.bool), chance())
    erase_parts(images, maps, torch.ones(8, 4, dtype=torch.bool), FILL)
    assert torch.equal(images, kept)


@given(SEEDS)
@settings(deadline=None, max_examples=10)
def test_the_generator_decides_everything(seed: int) -> None:
    photos, maps = marked(6)
    how = Augmentation(0.5, 0.5, 0.5)
    first = augment(photos, maps, how, chance(seed), FILL)
    torch.rand(5)
    again = augment(photos, maps, how, chance(seed), FILL)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = augment(photos, maps, how, chance(seed + 1), FILL)
    assert not torch.equal(first[0], other[0])


# --- the probabilities


def share(happened: Tensor) -> float:
    return float(happened.float().mean())


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_each_happens_as_often_as_asked(probability: float) -> None:
    n = 4000
    tolerance = 4 * (probability * (1 - probability) / n) ** 0.5
    photos, maps = marked(n, 4, 4)
    flipped, _ = augment(photos, maps, Augmentation(probability, 0.0, 0.0), chance(1), FILL)
    coloured, _ = augment(photos, maps, Augmentation(0.0, probability, 0.0), chance(2), FILL)
    erased, _ = augment(photos, maps, Augmentation(0.0, 0.0, probability), chance(3), FILL)
    original = photos.float() / 255
    happened = [share((each != original).flatten(1).any(1)) for each in (flipped, coloured, erased)]
    # 1 in 400 chains has no link at all (0.3^5), and a few small maps lack the chosen part.
    assert happened[0] == pytest.approx(probability, abs=tolerance + 1e-9)
    assert happened[1] == pytest.approx(probability * (1 - 0.3**5), abs=tolerance + 0.01)
    assert happened[2] == pytest.approx(probability, abs=tolerance + 0.03)


def test_one_or_two_parts_are_erased_and_each_as_often() -> None:
    maps = torch.arange(1, 5, dtype=torch.uint8).view(1, 4, 1).expand(6000, 4, 2).contiguous()
    photos = torch.full((6000, 3, 4, 2), 255, dtype=torch.uint8)
    _, varied = augment(photos, maps, Augmentation(0.0, 0.0, 1.0), chance(5), FILL)
    gone = (varied == 0)[:, :, 0]
    count = gone.sum(1)
    assert sorted(count.unique().tolist()) == [1, 2]
    assert share(count == 1) == pytest.approx(0.5, abs=0.03)
    for part in range(4):
        assert share(gone[:, part]) == pytest.approx(1.5 / 4, abs=0.03)
    pairs = {tuple(row.nonzero().flatten().tolist()) for row in gone}
    assert len(pairs) == 4 + 6


@pytest.mark.parametrize("name", ["flip", "colour", "occlusion"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"augmentation.{name} is a probability"):
        Augmentation(**{name: value})


# --- flip and erase


def test_flip_mirrors_the_chosen_rows_only() -> None:
    photos, maps = marked(3)
    images, mirrored = flip(photos.float(), maps, torch.tensor([True, False, True]))
    for row, chosen in enumerate((True, False, True)):
        expected = photos[row].numpy()[:, :, ::-1] if chosen else photos[row].numpy()
        assert np.array_equal(images[row].numpy(), expected)
        assert np.array_equal(mirrored[row].numpy(), maps[row].numpy()[:, ::-1] if chosen else maps[row].numpy())


def test_erasing_takes_exactly_the_parts_named() -> None:
    images, maps = noise(2), marked(2)[1]
    erased = torch.tensor([[True, False, False, True], [False, False, False, False]])
    painted, left = erase_parts(images, maps, erased, FILL)
    for row, column in np.ndindex(12, 8):
        label = int(maps[0, row, column])
        if label in (1, 4):
            assert painted[0, :, row, column].tolist() == pytest.approx(FILL, abs=1e-7)
            assert int(left[0, row, column]) == 0
        else:
            assert torch.equal(painted[0, :, row, column], images[0, :, row, column])
            assert int(left[0, row, column]) == label
    assert torch.equal(painted[1], images[1])
    assert torch.equal(left[1], maps[1])


def test_an_erased_pixel_is_zero_after_normalisation() -> None:
    painted, _ = erase_parts(
        noise(1), torch.ones(1, 12, 8, dtype=torch.uint8), torch.ones(1, 4, dtype=torch.bool), FILL
    )
    assert float((painted - torch.tensor(FILL).view(3, 1, 1)).abs().max()) == 0


# --- colour


@given(SEEDS)
@settings(deadline=None, max_examples=30)
def test_colour_varies_the_chosen_rows_only_and_stays_in_range(seed: int) -> None:
    images = noise(6, seed=seed)
    chosen = torch.tensor([True, False, True, True, False, True])
    varied = vary_colour(images, chosen, chance(seed))
    assert torch.equal(varied[~chosen], images[~chosen])
    assert float(varied.min()) >= 0
    assert float(varied.max()) <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_finite(value: float) -> None:
    varied = vary_colour(torch.full((40, 3, 12, 8), value), torch.ones(40, dtype=torch.bool), chance())
    assert bool(varied.isfinite().all())


def test_a_photos_chain_does_not_depend_on_its_neighbours_pixels() -> None:
    images = noise(5)
    everything = torch.ones(5, dtype=torch.bool)
    other = torch.cat([images[:2], 1 - images[2:]])
    assert torch.equal(vary_colour(images, everything, chance(3))[:2], vary_colour(other, everything, chance(3))[:2])


def test_every_link_is_applied_with_seven_tenths_and_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each photo carries the protocol of its own chain: link k turns the number x into 6 x + k + 1."""
    links = tuple(lambda images, factor, k=k: images * 6 + k + 1 for k in range(5))
    monkeypatch.setattr(transforms, "_LINKS", links)
    n = 5000
    written = vary_colour(torch.zeros(n, 3, 1, 1), torch.ones(n, dtype=torch.bool), chance(9))[:, 0, 0, 0].long()
    chains = []
    for number in written.tolist():
        chain = []
        while number:
            chain.append(number % 6 - 1)
            number //= 6  # noqa: PLW2901
        chains.append(tuple(chain[::-1]))
    assert all(len(set(chain)) == len(chain) for chain in chains)
    for link in range(5):
        assert sum(link in chain for chain in chains) / n == pytest.approx(0.7, abs=0.03)
    whole = [chain for chain in chains if len(chain) == 5]
    assert len(set(whole)) > 100  # of 120 orders
    for place in range(5):
        assert sum(chain[place] == 0 for chain in whole) / len(whole) == pytest.approx(0.2, abs=0.06)


def test_factors_lie_between_six_and_fourteen_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def note(images: Tensor, factor: Tensor) -> Tensor:
        seen.append(factor.flatten())
        return images

    monkeypatch.setattr(transforms, "_LINKS", (note,) * 5)
    vary_colour(torch.zeros(2000, 3, 1, 1), torch.ones(2000, dtype=torch.bool), chance(2))
    factors = torch.cat(seen)
    assert 0.6 <= float(factors.min()) < 0.61
    assert 1.39 < float(factors.max()) <= 1.4
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.01)


def link(apply: Callable[[Tensor, Tensor], Tensor], images: Tensor, factor: float) -> np.ndarray:
    return apply(images, torch.full((len(images), 1, 1, 1), factor)).numpy()


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_the_links_against_their_definitions(factor: float) -> None:
    images = noise(2, 6, 5)
    values = images.numpy().astype(np.float64)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114]), values, axes=(0, 1))[:, None]
    average = grey.mean((2, 3), keepdims=True)
    expected = {
        transforms._brightness: np.clip(values * factor, 0, 1),
        transforms._contrast: np.clip(factor * values + (1 - factor) * average, 0, 1),
        transforms._saturation: np.clip(factor * values + (1 - factor) * grey, 0, 1),
        transforms._gamma: values**factor,
    }
    for apply, answer in expected.items():
        np.testing.assert_allclose(link(apply, images, factor), answer, atol=1e-5)
        if factor == 1.0:
            np.testing.assert_allclose(link(apply, images, factor), values, atol=1e-6)


def test_saturation_leaves_the_luma_of_unclipped_pixels() -> None:
    images = 0.3 + 0.3 * noise(1, 4, 4)
    varied = link(transforms._saturation, images, 0.6)
    for before, after in zip(images[0].flatten(1).T.tolist(), varied[0].reshape(3, -1).T.tolist(), strict=True):
        assert colorsys.rgb_to_yiq(*after)[0] == pytest.approx(colorsys.rgb_to_yiq(*before)[0], abs=2e-3)


@pytest.mark.parametrize(("factor", "sigma"), [(0.7, 1.0), (1.3, 2.0)])
def test_blur_against_scipys_gaussian(factor: float, sigma: float) -> None:
    images = noise(2, 40, 30)
    found = link(transforms._blur, images, factor)
    for image, blurred in zip(images.numpy(), found, strict=True):
        for plane, answer in zip(image, blurred, strict=True):
            np.testing.assert_allclose(
                answer, gaussian_filter(plane.astype(np.float64), sigma, mode="mirror", truncate=3), atol=2e-3
            )


def test_blur_chooses_its_radius_for_each_photo() -> None:
    images = noise(1, 20, 20).expand(3, -1, -1, -1)
    blurred = transforms._blur(images, torch.tensor([0.7, 1.3, 0.8]).view(3, 1, 1, 1))
    assert torch.equal(blurred[0], blurred[2])
    assert float(blurred[1].std()) < 0.7 * float(blurred[0].std())


@pytest.mark.parametrize("size", [(2, 2), (3, 9), (7, 4)])
def test_blur_of_tiny_photos(size: tuple[int, int]) -> None:
    flat = torch.full((1, 3, *size), 0.25)
    np.testing.assert_allclose(link(transforms._blur, flat, 1.3), flat.numpy(), atol=1e-6)


# --- cells


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([8, 16]))
@settings(deadline=None)
def test_a_cell_takes_the_label_in_its_middle(h: int, w: int, stride: int) -> None:
    maps = torch.randint(0, 5, (2, h * stride, w * stride), generator=chance(h * w), dtype=torch.uint8)
    found = to_cells(maps, (h, w))
    assert found.dtype == torch.uint8
    assert torch.equal(found, maps[:, stride // 2 :: stride, stride // 2 :: stride])


def test_cells_of_a_mirrored_map_are_the_mirrored_cells_but_for_half_a_pixel() -> None:
    """No shift to one side: a map that is symmetric stays so."""
    maps = torch.zeros(1, 32, 64, dtype=torch.uint8)
    maps[:, :, 13:51] = 2
    cells = to_cells(maps, (2, 4))
    assert torch.equal(cells, cells.flip(-1))


# --- boxes that end early, things in front, rectangles erased


@given(SEEDS, st.sampled_from(["crop", "cover", "erase"]), PROBABILITIES)
@settings(deadline=None, max_examples=40)
def test_what_hides_moves_the_part_map_too_and_leaves_the_rest_alone(seed: int, name: str, probability: float) -> None:
    photos, maps = marked(6, 16, 12, seed=seed)
    images, varied = augment(photos, maps, Augmentation(0.0, **{name: probability}), chance(seed), FILL)
    assert images.shape == photos.shape
    assert (images.dtype, varied.dtype) == (torch.float32, torch.uint8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1 + 1e-6
    touched = (images != photos.float() / 255).any(1) | (varied != maps)
    if probability == 0:
        assert not bool(touched.any())
    if probability == 1:
        assert bool(touched.flatten(1).any(1).all()) or name == "crop"
    if name != "crop":
        assert not bool(varied[touched].any()), "what hides is background"


@pytest.mark.parametrize(("name", "areas"), [("erase", (0.02, 0.3)), ("cover", (0.1, 0.5))])
def test_a_rectangle_has_the_area_asked_for_and_lies_anywhere(name: str, areas: tuple[float, float]) -> None:
    size = (64, 64)
    photos, maps = torch.zeros(400, 3, *size, dtype=torch.uint8), torch.ones(400, *size, dtype=torch.uint8)
    _, varied = augment(photos, maps, Augmentation(0.0, **{name: 1.0}), chance(5), FILL)
    gone = varied == 0
    share = gone.float().mean((1, 2))
    assert areas[0] - 0.02 < float(share.min()) < areas[0] + 0.05
    assert areas[1] - 0.08 < float(share.max()) < areas[1] + 0.02
    filled = gone.any(2)[:, :, None] & gone.any(1)[:, None, :]
    assert torch.equal(filled, gone), "one rectangle"
    often = gone.float().mean(0)
    quarters = torch.nn.functional.avg_pool2d(often[None, None], 16)
    assert float(quarters.min()) > 0.1 * float(quarters.max()), "anywhere, the edges included"


def test_erased_pixels_are_the_mean_and_covering_ones_come_from_another_photo() -> None:
    photos = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 12, 8) * 20
    maps = torch.full((8, 12, 8), 2, dtype=torch.uint8)
    images, varied = augment(photos, maps, Augmentation(0.0, erase=1.0), chance(), FILL)
    assert torch.equal((images == torch.tensor(FILL).view(3, 1, 1)).all(1), varied == 0)
    images, varied = augment(photos, maps, Augmentation(0.0, cover=1.0), chance(), FILL)
    number = (images[:, 0] * 255 / 20).round().long()
    own = torch.arange(8)[:, None, None]
    assert torch.equal(number == own, varied == 2), "what covers is another photo's"
    for row in range(8):
        assert len(number[row][varied[row] == 0].unique()) == 1


def test_a_box_that_ends_early_keeps_one_end_and_fills_the_frame() -> None:
    height = torch.arange(64).view(1, 1, 64, 1).expand(200, 3, 64, 64)
    width = torch.arange(64).view(1, 1, 1, 64).expand(200, 3, 64, 64)
    maps = torch.zeros(200, 64, 64, dtype=torch.uint8)
    found = []
    for ramp in (height, width):
        images, _ = augment((ramp * 4).to(torch.uint8), maps, Augmentation(0.0, crop=1.0), chance(3), FILL)
        seen = images[:, 0] * 255 / 4
        found.append(((seen[:, 0, 0]).round(), seen[:, -1, -1].round()))
    top, bottom = found[0]
    left, right = found[1]
    cut_vertically = (top > 1) | (bottom < 62)
    cut_across = (left > 1) | (right < 62)
    assert not bool((cut_vertically & cut_across).any()), "one side at a time"
    assert bool((cut_vertically | cut_across).all())
    for first, last, cut in ((top, bottom, cut_vertically), (left, right, cut_across)):
        kept = (last - first)[cut] / 63
        assert 0.37 < float(kept.min()) < 0.5
        assert 0.8 < float(kept.max()) < 0.93
        assert bool(((first[cut] <= 1) | (last[cut] >= 62)).all()), "the other end stays"
        assert bool((first[cut] > 1).any())
        assert bool((last[cut] < 62).any())


def test_a_cropped_part_map_fits_its_photo() -> None:
    photos, maps = torch.zeros(50, 3, 32, 16, dtype=torch.uint8), torch.zeros(50, 32, 16, dtype=torch.uint8)
    maps[:, 8:24, 4:12] = 3
    photos[:, :, 8:24, 4:12] = 255
    images, varied = augment(photos, maps, Augmentation(0.0, crop=1.0), chance(1), FILL)
    inside, outside = images[:, 0] > 0.75, images[:, 0] < 0.25
    assert bool((varied[inside] == 3).all())
    assert bool((varied[outside] == 0).all())
    assert float((inside | outside).float().mean()) > 0.8


def test_older_recipes_keep_their_batches() -> None:
    """Variations that a recipe does not ask for take nothing from its chance."""
    photos, maps = marked(6)
    generator = chance(9)
    images, varied = augment(photos, maps, Augmentation(0.5, 0.5, 0.5), generator, FILL)
    again = chance(9)
    flipped = flip(photos.float() / 255, maps, torch.rand(6, generator=again) < 0.5)
    coloured = vary_colour(flipped[0], torch.rand(6, generator=again) < 0.5, again)
    occluded = erase_parts(coloured, flipped[1], transforms._parts_to_erase(6, 0.5, again), FILL)
    assert torch.equal(images, occluded[0])
    assert torch.equal(varied, occluded[1])
    assert torch.equal(generator.get_state(), again.get_state())
