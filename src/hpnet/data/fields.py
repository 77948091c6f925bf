"""Part maps from confidence fields: the masks that BPBReID and KPR publish, one .npy for each photo.

In: the 36 planes that OpenPifPaf's COCO network gives at an eighth of the photo's size, 17 for joints, then 19 for
limbs. Out: part maps at the photo's size. The planes are grouped into the four parts; the order of joints and limbs is
OpenPifPaf's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hpnet.parts import BACKGROUND, PARTS, Part

CONFIDENCE_MIN: Final = (
    0.3  # below it a pixel is background; also the least that BPBReID's own background mask asks for
)
RULE: Final = (
    f"the part with the largest confidence, background below {CONFIDENCE_MIN}; hips, knees and ear-to-shoulder speak "
    "for no part, they lie on the border of two"
)
_CONFIDENCE_MAX: Final = 1.5  # cubic resizing overshoots 1 a little; more is no confidence

# COCO's joints: nose, eyes, ears; shoulders, elbows, wrists; hips; knees; ankles. Left first.
JOINTS: Final[tuple[Part | None, ...]] = (
    *[Part.HEAD] * 5, *[Part.TORSO] * 6, None, None, None, None, *[Part.LOWER_LEGS] * 2
)  # fmt: skip
LIMBS: Final[tuple[tuple[tuple[int, int], Part | None], ...]] = (
    ((15, 13), Part.LOWER_LEGS), ((13, 11), Part.UPPER_LEGS), ((16, 14), Part.LOWER_LEGS), ((14, 12), Part.UPPER_LEGS),
    ((11, 12), Part.TORSO), ((5, 11), Part.TORSO), ((6, 12), Part.TORSO), ((5, 6), Part.TORSO),  # the trunk
    ((5, 7), Part.TORSO), ((6, 8), Part.TORSO), ((7, 9), Part.TORSO), ((8, 10), Part.TORSO),  # the arms
    ((1, 2), Part.HEAD), ((0, 1), Part.HEAD), ((0, 2), Part.HEAD), ((1, 3), Part.HEAD), ((2, 4), Part.HEAD),
    ((3, 5), None), ((4, 6), None),  # ear to shoulder
)  # fmt: skip
PLANES: Final = len(JOINTS) + len(LIMBS)
_PART_OF_PLANE: Final = (*JOINTS, *(part for _, part in LIMBS))


class FieldsError(ValueError):
    """A file of confidence fields that cannot be used; the text names the file and the reason."""


def read_fields(path: Path) -> Float[Tensor, "36 h w"]:
    """Read the confidence fields of one photo: float32, 0..1.

    Raises:
        FieldsError: missing, no .npy, pickled, not 36 planes of floats, or values that are no confidences.
    """
    array = _array(path)
    if array.dtype.kind != "f":
        raise FieldsError(f"{path}: confidence fields must be floats, not {array.dtype}")
    if array.ndim != 3 or array.shape[0] != PLANES or 0 in array.shape:
        raise FieldsError(
            f"{path}: must hold {PLANES} planes ({len(JOINTS)} joints, {len(LIMBS)} limbs) of h x w cells, "
            f"not an array of shape {array.shape}"
        )
    fields = torch.from_numpy(array.astype(np.float32))
    if not bool(fields.isfinite().all()):
        raise FieldsError(f"{path}: holds values that are not finite")
    if float(fields.abs().max()) > _CONFIDENCE_MAX:
        raise FieldsError(f"{path}: holds {float(fields.abs().max()):.3g}, which is no confidence (0..1)")
    return fields


def fields_to_part_map(fields: Float[Tensor, "36 h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """The part map of a photo: per part the largest of its planes, laid over the photo bilinearly, the largest wins.

    Args:
        fields: confidences, 0..1.
        size: (height, width) of the map in pixels.

    Returns:
        0 where every part stays below `CONFIDENCE_MIN`, else 1..4 (`Part.label`).
    """
    planes = [[plane for plane, part in enumerate(_PART_OF_PLANE) if part is each] for each in PARTS]
    confidence = torch.stack([fields[each].amax(0) for each in planes])
    # The network's cells lie on the photo's pixels 0, 8, 16 and so on: the corners of both fall together.
    confidence = functional.interpolate(confidence[None], size, mode="bilinear", align_corners=True)[0]
    largest, part = confidence.max(0)
    return torch.where(largest < CONFIDENCE_MIN, BACKGROUND, part + 1).to(torch.uint8)


def _array(path: Path) -> NDArray[Any]:
    """The one array in a .npy; mapped, so that a header which promises more than the file holds costs nothing."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FieldsError(f"{path}: no such file") from error
    except PermissionError as error:
        raise FieldsError(f"{path}: may not be read (permissions)") from error
    except Exception as error:  # NumPy's reader lets the errors of struct, ast, mmap and zipfile through
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        reason = "nothing pickled is read" if pickled else str(error).split("\n")[0] or type(error).__name__
        raise FieldsError(f"{path}: not a readable .npy ({reason})") from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise FieldsError(f"{path}: an archive of several arrays, not a .npy")
    return loaded
