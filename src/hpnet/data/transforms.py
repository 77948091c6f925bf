"""Augmentation of whole batches: photo and part map always move together.

In: uint8 photos and part maps as they lie in memory. Out: float photos in [0, 1] and part maps that still fit them. All
chance comes from one generator on the CPU, so that a batch is the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor

from hpnet.parts import BACKGROUND, PARTS

_FACTORS: Final = (0.6, 1.4)  # of brightness, contrast, saturation, gamma in the authors' chain
_LINK_PROBABILITY: Final = 0.7  # with which each link of the chain is applied
_BLUR_RADII: Final = (1, 2)  # standard deviation in pixels
_LUMA: Final = (0.299, 0.587, 0.114)
# Shares of the photo's area, and height over width, of random erasing (Zhong et al. 2020).
_ERASED: Final = (0.02, 0.3)
_COVERED: Final = (0.1, 0.5)
_SHOWN: Final = 0.25  # of height and width of the photo that covers
_ELONGATION: Final = (0.3, 3.3)
_KEPT: Final = (0.4, 0.9)  # of height or width when a box ends early


@dataclass(frozen=True)
class Augmentation:
    """How a training photo is varied; each value is a probability per photo.

    Attributes:
        flip: mirrored left to right (Section 4.1).
        colour: the authors' shuffled chain of blur, brightness, contrast, saturation and gamma.
        occlusion: one or two whole parts erased, from the photo and from its part map (the authors' code).
        crop: the box ends early at one side, and the rest is brought back to size.
        cover: a rectangle of another photo of the batch comes before the person, enlarged; its pixels are background.
        erase: a rectangle is erased (Zhong et al. 2020), from the part map too.
    """

    flip: float = 0.5
    colour: float = 0.0
    occlusion: float = 0.0
    crop: float = 0.0
    cover: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"augmentation.{name} is a probability, not {value}")


def augment(
    photos: UInt8[Tensor, "b 3 H W"],
    part_maps: UInt8[Tensor, "b H W"],
    how: Augmentation,
    generator: Generator,
    fill: tuple[float, float, float],
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """Vary a batch. What erases comes last, so that erased pixels stay exactly `fill`.

    A variation of probability 0 takes nothing from the generator where it is newer than the first recipes (crop, cover,
    erase): their batches stay what they were.

    Args:
        photos: RGB 0..255.
        part_maps: 0 background, 1..4 the parts, at the photos' resolution.
        how: the probabilities.
        generator: on the CPU; its state decides everything.
        fill: RGB in [0, 1] of erased pixels; the model's mean, which is 0 after normalisation.
    """
    flipped = _chosen(len(photos), how.flip, generator)
    images, maps = flip(photos.float() / 255, part_maps, flipped)
    if how.crop:
        images, maps = crop(images, maps, _chosen(len(photos), how.crop, generator), generator)
    images = vary_colour(images, _chosen(len(photos), how.colour, generator), generator)
    if how.cover:
        images, maps = cover(images, maps, _chosen(len(photos), how.cover, generator), generator)
    if how.erase:
        images, maps = erase(images, maps, _chosen(len(photos), how.erase, generator), generator, fill)
    return erase_parts(images, maps, _parts_to_erase(len(photos), how.occlusion, generator), fill)


def flip(
    images: Float[Tensor, "b 3 H W"], part_maps: UInt8[Tensor, "b H W"], chosen: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """Mirror the chosen rows left to right."""
    chosen = chosen.to(images.device)
    mirrored = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    return mirrored, torch.where(chosen[:, None, None], part_maps.flip(-1), part_maps)


def crop(
    images: Float[Tensor, "b 3 H W"],
    part_maps: UInt8[Tensor, "b H W"],
    chosen: Bool[Tensor, " b"],
    generator: Generator,
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """End the chosen photos early at one of four sides: 40 to 90 % of height or width stay and fill the frame."""
    b = len(images)
    side = torch.randint(4, (b,), generator=generator)
    kept = torch.empty(b).uniform_(*_KEPT, generator=generator)
    kept = torch.where(chosen, kept, 1.0)
    vertical, towards_end = side < 2, side % 2 == 1
    # x_in = scale * x_out + shift, in [-1, 1]: what is kept touches the side opposite to the cut.
    shift = torch.where(towards_end, 1 - kept, kept - 1)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(vertical, 1.0, kept), torch.where(vertical, kept, 1.0)
    theta[:, 0, 2], theta[:, 1, 2] = torch.where(vertical, 0.0, shift), torch.where(vertical, shift, 0.0)
    rows = chosen.nonzero().flatten().to(images.device)
    if not len(rows):
        return images, part_maps
    grid = F.affine_grid(theta[chosen].to(images.device), [len(rows), 3, *images.shape[2:]], align_corners=False)
    images, part_maps = images.clone(), part_maps.clone()
    images[rows] = F.grid_sample(images[rows], grid, padding_mode="border", align_corners=False)
    maps = part_maps[rows][:, None].float()
    found = F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False)
    part_maps[rows] = found[:, 0].byte()
    return images, part_maps


def cover(
    images: Float[Tensor, "b 3 H W"],
    part_maps: UInt8[Tensor, "b H W"],
    chosen: Bool[Tensor, " b"],
    generator: Generator,
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """Put a rectangle before the person, of what another photo of the batch shows somewhere, four times as large.

    So large it is cloth, wall or leaves rather than somebody: parts of a person that are called background because they
    are not this person's teach the parsing heads to doubt every part.
    """
    b, _, height, width = images.shape
    gone = _rectangles(b, (height, width), _COVERED, generator)
    others = (torch.arange(b) + torch.randint(1, max(b, 2), (b,), generator=generator)) % b
    theta = torch.zeros(b, 2, 3)  # x_in = scale * x_out + shift, in [-1, 1]
    theta[:, 0, 0] = theta[:, 1, 1] = _SHOWN
    theta[:, :, 2] = torch.empty(b, 2).uniform_(_SHOWN - 1, 1 - _SHOWN, generator=generator)
    gone = (gone & chosen[:, None, None]).to(images.device)
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images, part_maps
    grid = F.affine_grid(theta[rows].to(images.device), [len(rows), 3, height, width], align_corners=False)
    large = images.clone()
    large[rows] = F.grid_sample(images[others[rows]], grid, padding_mode="border", align_corners=False)
    return torch.where(gone[:, None], large, images), part_maps.masked_fill(gone, BACKGROUND)


def erase(
    images: Float[Tensor, "b 3 H W"],
    part_maps: UInt8[Tensor, "b H W"],
    chosen: Bool[Tensor, " b"],
    generator: Generator,
    fill: tuple[float, float, float],
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """Random erasing (Zhong et al. 2020) that tells the part map: what was erased is background."""
    b, _, height, width = images.shape
    gone = _rectangles(b, (height, width), _ERASED, generator)
    gone = (gone & chosen[:, None, None]).to(images.device)
    return torch.where(gone[:, None], _paint(fill, images), images), part_maps.masked_fill(gone, BACKGROUND)


def erase_parts(
    images: Float[Tensor, "b 3 H W"],
    part_maps: UInt8[Tensor, "b H W"],
    erased: Bool[Tensor, "b p"],
    fill: tuple[float, float, float],
) -> tuple[Float[Tensor, "b 3 H W"], UInt8[Tensor, "b H W"]]:
    """Paint whole parts over with `fill` and turn them into background."""
    nothing = torch.zeros(len(erased), 1, dtype=torch.bool)
    by_label = torch.cat([nothing, erased], 1).to(images.device)
    gone = by_label.gather(1, part_maps.flatten(1).long()).view_as(part_maps)
    return torch.where(gone[:, None], _paint(fill, images), images), part_maps.masked_fill(gone, BACKGROUND)


def vary_colour(
    images: Float[Tensor, "b 3 H W"], chosen: Bool[Tensor, " b"], generator: Generator
) -> Float[Tensor, "b 3 H W"]:
    """The authors' colour chain on the chosen rows: five links in an order of its own for each photo."""
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images
    orders = torch.stack([torch.randperm(len(_LINKS), generator=generator) for _ in rows])
    applied = torch.rand(orders.shape, generator=generator) < _LINK_PROBABILITY
    factors = torch.empty(orders.shape).uniform_(*_FACTORS, generator=generator)
    varied = images.clone()
    for place in range(len(_LINKS)):
        # Photos whose chain has the same link at this place go through it together.
        for link, apply in enumerate(_LINKS):
            here = (orders[:, place] == link) & applied[:, place]
            if bool(here.any()):
                target = rows[here].to(images.device)
                strength = factors[here, place].to(images.device).view(-1, 1, 1, 1)
                varied[target] = apply(varied[target], strength)
    return varied


def to_cells(part_maps: UInt8[Tensor, "b H W"], cells: tuple[int, int]) -> UInt8[Tensor, "b h w"]:
    """Part maps at the network's resolution: the label in the middle of each cell (nearest neighbour)."""
    resized: Tensor = F.interpolate(part_maps[:, None], cells, mode="nearest-exact")
    return resized[:, 0]


def _chosen(count: int, probability: float, generator: Generator) -> Bool[Tensor, " b"]:
    return torch.rand(count, generator=generator) < probability


def _rectangles(
    count: int, size: tuple[int, int], areas: tuple[float, float], generator: Generator
) -> Bool[Tensor, "b H W"]:
    """A random rectangle in each photo: area (as a share of the photo's), elongation and place are drawn."""
    area = torch.empty(count).uniform_(*areas, generator=generator)
    elongation = torch.empty(count).uniform_(*map(log, _ELONGATION), generator=generator).exp()
    # In shares of height and width, for a square frame; what would stick out is cut to the frame.
    height, width = (area * elongation).sqrt().clamp(max=1), (area / elongation).sqrt().clamp(max=1)
    inside = []
    for length, extent in zip(size, (height, width), strict=True):
        start = torch.rand(count, generator=generator) * (1 - extent)
        middle = (torch.arange(length) + 0.5) / length
        inside.append((middle >= start[:, None]) & (middle < (start + extent)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _paint(fill: tuple[float, float, float], images: Tensor) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(fill, device=images.device, dtype=images.dtype).view(3, 1, 1)


def _parts_to_erase(count: int, probability: float, generator: Generator) -> Bool[Tensor, "b p"]:
    """One or two random parts of each chosen photo."""
    chosen = _chosen(count, probability, generator)
    how_many: Int64[Tensor, " b"] = torch.randint(1, 3, (count,), generator=generator)
    place = torch.rand(count, len(PARTS), generator=generator).argsort(1).argsort(1)
    return (place < how_many[:, None]) & chosen[:, None]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    middle = _grey(images).mean((2, 3), keepdim=True)
    return (middle + (images - middle) * factor).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    return (grey + (images - grey) * factor).clamp(0, 1)


def _gamma(images: Tensor, factor: Tensor) -> Tensor:
    return images.clamp(min=0).pow(factor)


def _blur(images: Tensor, factor: Tensor) -> Tensor:
    """Gaussian blur; the factor's half of its range chooses between the two radii."""
    small = factor.flatten() < sum(_FACTORS) / 2
    blurred = torch.empty_like(images)
    for radius, rows in zip(_BLUR_RADII, (small, ~small), strict=True):
        if bool(rows.any()):
            blurred[rows] = _gaussian(images[rows], radius)
    return blurred


def _gaussian(images: Tensor, radius: int) -> Tensor:
    reach = min(ceil(3 * radius), min(images.shape[2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * radius**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(across, kernel.transpose(2, 3), groups=3)


_LINKS: Final[tuple[Callable[[Tensor, Tensor], Tensor], ...]] = (_blur, _brightness, _contrast, _saturation, _gamma)
