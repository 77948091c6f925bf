"""The paper's three losses (Section 3.2, Eq. 2-9) as pure functions: tensors in, one scalar out."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from hpnet.distance import visible_mean
from hpnet.parts import part_masks

TRIPLET_MARGIN: Final = 0.3  # Eq. 3
FOCAL_ALPHA: Final = 0.25  # Eq. 8
FOCAL_GAMMA: Final = 2.0  # Eq. 8
_SQUARED_DISTANCE_MIN: Final = 1e-12  # the root's slope is infinite at 0


def identity_loss(
    logits: Float[Tensor, "b p c"],
    identity: Integer[Tensor, " b"],
    visibility: Bool[Tensor, "b p"],
    average: Literal["batch", "visible"] = "batch",
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of every visible part's own classifier, summed over the parts (Eq. 2).

    Args:
        logits: the classifiers' outputs.
        identity: class of each image, 0..c-1.
        visibility: parts that count; a part no image of the batch shows adds 0.
        average: `batch` divides by the batch size (the paper), `visible` divides each part by the number of images
            that show it (the authors' code).
        smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016); 0 in the paper.
    """
    b, p, c = logits.shape
    target = identity.long()[:, None].expand(b, p)
    flat = _precise(logits).reshape(b * p, c)
    entropy = F.cross_entropy(flat, target.reshape(b * p), reduction="none", label_smoothing=smoothing)
    per_part = (entropy.view(b, p) * visibility).sum(0)
    if average == "batch":
        return per_part.sum() / max(b, 1)
    return (per_part / visibility.sum(0).clamp(min=1)).sum()


def triplet_loss(
    features: Float[Tensor, "b p d"],
    visibility: Bool[Tensor, "b p"],
    identity: Integer[Tensor, " b"],
    margin: float = TRIPLET_MARGIN,
) -> Float[Tensor, ""]:
    """Batch-hard triplet loss on the mean distance over commonly visible parts (Eq. 3-5).

    Each image is an anchor once. Pairs without a common part are never the hardest; an anchor that has no positive or
    no negative to compare with adds 0. An image is a positive of itself, at distance 0, as in Hermans et al. (2017)
    and the authors' code; so an identity seen once is only pushed away from others.

    Args:
        features: before the neck, not normalised.
        visibility: parts that count.
        identity: any integers, equal for the same person.
        margin: M of Eq. 3.
    """
    shown = visibility.T[:, :, None] & visibility.T[:, None, :]
    by_part = _precise(features).transpose(0, 1)
    # Differences, not a matrix product: near pairs keep their digits, and so do their gradients.
    squared = torch.stack([_squared_distances(part) for part in by_part])
    distances = squared.clamp(min=_SQUARED_DISTANCE_MIN).sqrt()
    same = identity[:, None] == identity[None, :]
    comparable = shown.any(0)
    mean = visible_mean(distances, shown, otherwise=0.0)
    hardest_positive = mean.masked_fill(~(same & comparable), -torch.inf).amax(1)
    hardest_negative = mean.masked_fill(~(~same & comparable), torch.inf).amin(1)
    violation = (margin + hardest_positive - hardest_negative).clamp(min=0)
    return violation.sum() / max(len(features), 1)


def parsing_loss(
    logits: Float[Tensor, "b p h w"],
    part_map: Integer[Tensor, "b h w"],
    average: Literal["image", "batch"] = "image",
) -> Float[Tensor, ""]:
    """Focal loss of the part masks, averaged over the positive cells (Eq. 6-9).

    Eq. 9 divides by the number of positive cells, of which an absent part has none. Such a part is weighed as if it had
    the size it has on average in the batch's other images (an even share of the picture if no image shows it): the
    network learns that it is not to be seen, no louder than it learns where a visible one is.

    Args:
        logits: the parsing heads' outputs before the sigmoid.
        part_map: 0 background, 1..p the parts, at the logits' resolution.
        average: `image` divides by each image's positive cells of the part and by the batch size (Eq. 9), `batch`
            divides each part by its positive cells in the whole batch (the authors' code).
    """
    logits = _precise(logits)
    target = part_masks(part_map)[:, : logits.shape[1]].to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    missed = (1 - probability) * target + probability * (1 - target)
    weight = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    loss = (weight * missed.pow(FOCAL_GAMMA) * entropy).sum((2, 3))
    cells = target.sum((2, 3))
    images = (cells > 0).sum(0)
    even_share = target[0, 0].numel() / (target.shape[1] + 1) if len(target) else 1.0
    typical = torch.where(images > 0, cells.sum(0) / images.clamp(min=1), even_share)
    if average == "batch":
        return (loss.sum(0) / torch.where(images > 0, cells.sum(0), typical)).sum()
    return (loss / torch.where(cells > 0, cells, typical)).sum() / max(len(logits), 1)


def _precise(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least float32: under autocast the network's outputs are half as precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _squared_distances(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    return (features[:, None] - features[None, :]).square().sum(-1)
