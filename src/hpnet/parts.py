"""The four body parts: order, names, colours, how other labellings fold into them, and the value that travels.

In: integer label maps of some labelling. Out: part maps (0 background, 1..4 the parts of the paper, Section 3), and
`PartFeatures`, what is known of a person in a photo. Everything else in the project stands on this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


class Part(IntEnum):
    """A body part, by its index in every tensor with a `p` dimension; a part map shows it as `part + 1`."""

    HEAD = 0
    TORSO = 1
    UPPER_LEGS = 2
    LOWER_LEGS = 3

    @property
    def label(self) -> int:
        """The part's value in a part map, 1..4 (0 is background)."""
        return self.value + 1

    @property
    def title(self) -> str:
        """The part's name for people, in the paper's words."""
        return ("head", "torso and arms", "upper legs", "lower legs and feet")[self.value]

    @property
    def colour(self) -> tuple[int, int, int]:
        """The part's colour in drawings, sRGB 0..255; told apart also by colour-blind eyes (Okabe and Ito)."""
        return ((230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167))[self.value]


PARTS: Final = tuple(Part)
BACKGROUND: Final = 0

_HEAD, _TORSO, _UPPER, _LOWER = (part.label for part in PARTS)

# A folding lists, for each label of the other labelling, the part map value it becomes.
FOLDINGS: Final[dict[str, tuple[int, ...]]] = {
    # The paper's own: nothing to fold.
    "parts": (BACKGROUND, _HEAD, _TORSO, _UPPER, _LOWER),
    # DensePose-COCO `dp_masks` (Güler et al. 2018): 1 torso, 2 right hand, 3 left hand, 4 left foot, 5 right foot,
    # 6-7 upper legs, 8-9 lower legs, 10-11 upper arms, 12-13 lower arms, 14 head.
    "densepose": (
        BACKGROUND, _TORSO, _TORSO, _TORSO, _LOWER, _LOWER, _UPPER, _UPPER, _LOWER, _LOWER,
        _TORSO, _TORSO, _TORSO, _TORSO, _HEAD,
    ),
    # The authors' pseudo labels: 1 head, 2 torso, 3 upper arm, 4 lower arm, 5 upper leg, 6 lower leg, 7 foot.
    "authors": (BACKGROUND, _HEAD, _TORSO, _TORSO, _TORSO, _UPPER, _LOWER, _LOWER),
    # Pascal-Person-Part as stored here: 1 lower arm, 2 torso, 3 lower leg, 4 head, 5 upper leg, 6 upper arm.
    "pascal": (BACKGROUND, _TORSO, _TORSO, _LOWER, _HEAD, _UPPER, _TORSO),
}  # fmt: skip

PIXEL_IGNORED: Final = 255  # Pascal's "void" border: folded to background


def fold(labels: Integer[Tensor, "*shape"], folding: str) -> Integer[Tensor, "*shape"]:
    """Fold the labels of another labelling into part map values.

    Args:
        labels: integers of any shape; 255 ("void") counts as background.
        folding: a key of `FOLDINGS`.

    Returns:
        uint8 tensor of the same shape, values 0 (background) and 1..4 (`Part.label`).

    Raises:
        ValueError: the folding is unknown, or a label lies outside its table.
    """
    if folding not in FOLDINGS:
        raise ValueError(f"unknown folding {folding!r}: choose one of {', '.join(FOLDINGS)}")
    table = torch.tensor(FOLDINGS[folding], dtype=torch.uint8, device=labels.device)
    index = labels.long()
    index = torch.where(index == PIXEL_IGNORED, BACKGROUND, index)
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(table)):
        surplus = sorted(set(index.flatten().tolist()) - set(range(len(table))))
        raise ValueError(f"labels {surplus} are unknown to the {folding!r} labelling, which has 0..{len(table) - 1}")
    return table[index]


def part_masks(part_map: Integer[Tensor, "*b h w"]) -> Bool[Tensor, "*b p h w"]:
    """The binary masks S of the paper (Section 3.1): one plane per part, true where the map shows it."""
    labels = torch.tensor([part.label for part in PARTS], dtype=part_map.dtype, device=part_map.device)
    return part_map.unsqueeze(-3) == labels[:, None, None]


def visible_parts(part_map: Integer[Tensor, "*b h w"]) -> Bool[Tensor, "*b p"]:
    """Which parts a part map shows anywhere."""
    return part_masks(part_map).flatten(-2).any(-1)


@dataclass(frozen=True, eq=False)
class PartFeatures:
    """What is known of n people: one feature vector per part and which parts were seen.

    Slices like an array along n. Validates itself: a wrong shape, a value that is not finite, or a visible part whose
    vector is not of unit length raises ValueError. A part that is not visible may hold any finite vector (what the
    network says of a part it did not see), also zeros.

    Attributes:
        features: (n, p, d) float, unit length per visible part.
        visibility: (n, p) bool, true where the part was seen.
    """

    features: Float[Tensor, "n p d"]
    visibility: Bool[Tensor, "n p"]

    def __post_init__(self) -> None:
        if not isinstance(self.features, Tensor) or not isinstance(self.visibility, Tensor):
            raise TypeError("PartFeatures takes torch tensors: wrap arrays with torch.from_numpy")
        if self.features.ndim != 3 or not self.features.is_floating_point():
            raise ValueError(f"features must be floats of shape (n, p, d), not {_describe(self.features)}")
        if self.visibility.dtype != torch.bool or self.visibility.shape != self.features.shape[:2]:
            shape = tuple(self.features.shape[:2])
            raise ValueError(f"visibility must be bool of shape {shape}, not {_describe(self.visibility)}")
        length = self.features.float().norm(dim=-1)
        if not bool(length.isfinite().all()):
            raise ValueError("features hold values that are not finite")
        tolerance = 1e-2 if self.features.dtype in (torch.float16, torch.bfloat16) else 1e-3
        wrong = self.visibility & ((length - 1).abs() > tolerance)
        if bool(wrong.any()):
            row, part = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"features must have unit length per visible part; row {row}, part {part} has {length[row, part]:.4f}"
            )

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, rows: int | slice | Tensor | list[int]) -> PartFeatures:
        """The chosen rows, as PartFeatures; one row number keeps the dimension n (= 1)."""
        if isinstance(rows, int):
            row = range(len(self))[rows]  # IndexError past the end, so that a for loop ends
            rows = slice(row, row + 1)
        return _of_valid(self.features[rows], self.visibility[rows])

    def to(self, target: torch.device | torch.dtype | str) -> PartFeatures:
        """The same on another device, or with features of another float type."""
        visibility = self.visibility if isinstance(target, torch.dtype) else self.visibility.to(target)
        return PartFeatures(self.features.to(target), visibility)

    @staticmethod
    def concatenate(pieces: list[PartFeatures]) -> PartFeatures:
        """One value out of several, in order. Raises ValueError for an empty list.

        If each part's features lie together in memory, they do so in the result.
        """
        if not pieces:
            raise ValueError("nothing to concatenate: the list of PartFeatures is empty")
        by_part = [piece.features.transpose(0, 1) for piece in pieces]
        if all(each.is_contiguous() for each in by_part):
            features = torch.cat(by_part, dim=1).transpose(0, 1)
        else:
            features = torch.cat([piece.features for piece in pieces])
        return _of_valid(features, torch.cat([piece.visibility for piece in pieces]))


def _of_valid(features: Float[Tensor, "n p d"], visibility: Bool[Tensor, "n p"]) -> PartFeatures:
    """Of what has been validated: to do so again takes longer than to copy it."""
    people = object.__new__(PartFeatures)
    object.__setattr__(people, "features", features)
    object.__setattr__(people, "visibility", visibility)
    return people


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
