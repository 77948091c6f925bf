"""Photos and part maps on disk: one door in, one door out, whatever the file holds.

In: paths. Out: uint8 tensors. A file that cannot be used raises `PhotoError`, whose text is one line that names the
file and says what is wrong, so that callers can report it, skip it, and go on.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hpnet.files import written_whole
from hpnet.parts import PARTS

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm")
PIXELS_MAX: Final = 64_000_000  # 192 MB decoded: far above any crop of a person, far below what exhausts memory
_BEHIND_TRANSPARENCY: Final = (128, 128, 128)


class PhotoError(ValueError):
    """A picture file that cannot be used; the text names the file and the reason."""


@dataclass(frozen=True)
class Failure:
    """A file of many that could not be used, and why (one line that names the file)."""

    path: Path
    reason: str


def find_photos(folder: Path) -> list[Path]:
    """All picture files below a folder (or the one file given), sorted by name; hidden files and folders are left out.

    Raises:
        PhotoError: the folder is missing or holds no picture.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise PhotoError(f"{folder}: no such file or folder")
    pictures = (path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    found = sorted(path for path in pictures if not any(n.startswith(".") for n in path.relative_to(folder).parts))
    if not found:
        raise PhotoError(f"{folder}: holds no pictures ({' '.join(PHOTO_SUFFIXES)})")
    return found


def read_photo(path: Path | str, size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 H W"]:
    """Read one photo, upright, as 8-bit RGB.

    EXIF rotation is applied; 16-bit grey is scaled to 8 bits; CMYK, palette and grey become RGB; transparency shows
    mid-grey; of an animation the first frame counts.

    Args:
        path: any format Pillow reads.
        size: (height, width) in pixels to resize to, bilinear with antialiasing; None keeps the file's size.

    Raises:
        PhotoError: missing, empty, truncated, not a picture, or more than `PIXELS_MAX` pixels.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        rgb = _as_rgb(upright)
        if size is not None:
            rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def read_size(path: Path | str) -> tuple[int, int]:
    """A photo's (height, width) in pixels when upright, from its header alone.

    Raises:
        PhotoError: as `read_photo`, but for damage behind the header.
    """
    with _opened(path, load=False) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (width, height) if sideways else (height, width)


def read_part_map(path: Path | str, size: tuple[int, int] | None = None) -> UInt8[Tensor, "H W"]:
    """Read one label map (PNG, palette or grey) as the integers that stand in it, unfolded.

    Args:
        path: the file.
        size: (height, width) to resize to, nearest neighbour; None keeps the file's size.

    Raises:
        PhotoError: as `read_photo`; also when the file is a colour picture, which holds no labels.
    """
    with _opened(path) as image:
        if image.mode not in ("P", "L", "1"):
            raise PhotoError(f"{path}: a part map must be a palette or grey PNG, not {image.mode}")
        sized = image if size is None else image.resize((size[1], size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(sized, dtype=np.uint8))


def write_part_map(path: Path, part_map: UInt8[Tensor, "H W"]) -> None:
    """Write a part map as a palette PNG in the parts' colours, by way of a temporary file beside it."""
    image = Image.fromarray(part_map.cpu().numpy()).convert("P")
    image.putpalette([0, 0, 0, *(value for part in PARTS for value in part.colour)])
    write_picture(path, image)


def write_picture(path: Path, image: Image.Image, quality: int = 92) -> None:
    """Write a picture so that a half-written file is never seen under its name."""
    with written_whole(path) as beside:
        image.save(beside, quality=quality)


def read_photos(
    paths: Iterable[Path], size: tuple[int, int], workers: int = 0
) -> Iterator[UInt8[Tensor, "3 H W"] | Failure]:
    """Read many photos in their order, decoding ahead on threads; a bad file comes out as a `Failure`.

    Args:
        paths: the files.
        size: (height, width) every photo is resized to.
        workers: threads; 0 = one per core this process may use, at most 8.
    """

    def read(path: Path) -> Tensor | Failure:
        try:
            return read_photo(path, size)
        except PhotoError as error:
            return Failure(path, str(error))

    workers = workers or min(8, len(os.sched_getaffinity(0)))
    remaining = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        # A bounded number in flight: a million paths must not become a million decoded photos.
        while piece := list(islice(remaining, 64 * workers)):
            yield from pool.map(read, piece)


def read_stack(paths: Sequence[Path], size: tuple[int, int]) -> UInt8[Tensor, "n 3 H W"]:
    """Read photos into one tensor in memory.

    Raises:
        PhotoError: names up to five of the files that could not be read, and how many there are.
    """
    stack = torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    failures: list[Failure] = []
    for row, photo in enumerate(read_photos(paths, size)):
        if isinstance(photo, Failure):
            failures.append(photo)
        else:
            stack[row] = photo
    if failures:
        named = "; ".join(failure.reason for failure in failures[:5])
        raise PhotoError(f"{len(failures)} of {len(paths)} photos cannot be read: {named}")
    return stack


class _Quiet:
    """Warnings are off while any thread decodes: `warnings.catch_warnings` alone is no match for threads.

    Two threads that enter and leave it crosswise would leave the whole process without warnings.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.inside = 0
        self.off = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.off = warnings.catch_warnings()
                self.off.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.off.__exit__(None, None, None)


_QUIET: Final = _Quiet()
_REASONS: Final[dict[type[Exception], str]] = {
    FileNotFoundError: "no such file",
    IsADirectoryError: "a folder, not a picture",
    PermissionError: "may not be read (permissions)",
    Image.DecompressionBombError: f"more than the limit of {PIXELS_MAX:,} pixels; shrink the picture",
    UnidentifiedImageError: "not a picture that can be read",
}
_DECODER_ERRORS: Final = (OSError, ValueError, SyntaxError, EOFError, struct.error)


class _opened:  # noqa: N801  (reads as a verb in a with statement)
    """An open picture whose errors are all PhotoErrors that name the file."""

    def __init__(self, path: Path | str, load: bool = True) -> None:
        self.path = path
        self.load = load
        self.image: Image.Image | None = None

    def __enter__(self) -> Image.Image:
        # Size is checked below, in our own words; other remarks of the decoder help nobody here.
        _QUIET.__enter__()
        try:
            self.image = Image.open(self.path)
            self._check_size(*self.image.size)
            if self.load:
                self.image.load()
        except BaseException as error:  # also Ctrl-C: nothing stays open, and warnings come back on
            self._close()
            if isinstance(error, Exception):
                raise self._explained(error) from error
            raise
        return self.image

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._close()
        if isinstance(error, _DECODER_ERRORS):
            raise self._explained(error) from error

    def _close(self) -> None:
        if self.image is not None:
            self.image.close()
        _QUIET.__exit__()

    def _check_size(self, width: int, height: int) -> None:
        if width * height > PIXELS_MAX:
            raise PhotoError(
                f"{self.path}: {width} x {height} pixels are more than the limit of {PIXELS_MAX:,}; shrink the picture"
            )

    def _explained(self, error: Exception) -> PhotoError:
        if isinstance(error, PhotoError):
            return error
        if Path(self.path).is_file() and Path(self.path).stat().st_size == 0:
            return PhotoError(f"{self.path}: the file is empty")
        for kind, words in _REASONS.items():
            if isinstance(error, kind):
                return PhotoError(f"{self.path}: {words}")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return PhotoError(f"{self.path}: damaged picture ({reason})")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # 16 bits are what such files hold in practice; a float picture is taken as 0..1 or 0..255 by its range.
        scale = 1 / 257 if image.mode.startswith("I") else (255 if values.max(initial=0) <= 1 else 1)
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, (*_BEHIND_TRANSPARENCY, 255))
        return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
