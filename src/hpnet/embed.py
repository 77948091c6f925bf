"""Embedder: photos in, `PartFeatures` out. The one door from pictures to features outside training."""

from __future__ import annotations

import copy
import hashlib
import json as json_format
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from hpnet import weights as weights_file
from hpnet.console import say, tell_skipped, tracked
from hpnet.data.photos import Failure, PhotoError, find_photos, read_photos
from hpnet.files import fingerprint, written_whole
from hpnet.model import HPNet, ModelOutput
from hpnet.parts import BACKGROUND, PartFeatures

Photos = Num[Tensor, "b 3 H W"] | str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class EmbeddedFiles:
    """What became of many files: those that were read, row by row, and those that could not be."""

    paths: tuple[Path, ...]
    features: PartFeatures
    failures: tuple[Failure, ...]


class Embedder:
    """Turns photos of people into `PartFeatures`.

    Args:
        weights: name of bundled weights, path of a weights file, or a model.
        device: `cpu`, `cuda` ...; None takes a GPU if there is one.
        batch_size: photos that go through the network together.

    Raises:
        WeightsError: there are no such weights, or they cannot be used.
        ValueError: the device cannot be used, or batch_size is below 1.
    """

    def __init__(
        self, weights: str | Path | HPNet = "compact", *, device: torch.device | str | None = None, batch_size: int = 32
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        if isinstance(weights, HPNet):
            self.model = copy.deepcopy(weights).eval().to(self.device)  # the caller's own stays as it is
            self.fingerprint = _hash_of(weights)
        else:
            path = weights_file.locate(weights)
            self.model = weights_file.load(path, self.device)
            self.fingerprint = fingerprint(path)

    def __call__(self, photos: Photos) -> PartFeatures:
        """Embed photos, one row each, in their order.

        Args:
            photos: (b, 3, H, W) RGB, uint8 0..255 or float in [0, 1], of any size; or one path, or several.

        Returns:
            float32 unit vectors per part and the parts found, on the CPU.

        Raises:
            PhotoError: a file cannot be read (`embed_files` skips such files and goes on).
            ValueError: images of a wrong shape or range.
        """
        if isinstance(photos, Tensor):
            batches = (_features(self.look(batch)) for batch in torch.split(photos, self.batch_size))
            return self._joined(batches)
        paths = [photos] if isinstance(photos, str | Path) else photos
        embedded = self.embed_files([Path(path) for path in paths])
        if embedded.failures:
            raise PhotoError("; ".join(failure.reason for failure in embedded.failures[:5]))
        return embedded.features

    def embed_files(self, paths: Sequence[Path], *, progress: str | None = None) -> EmbeddedFiles:
        """Embed files; one that cannot be read is reported and left out, the rest goes on.

        Args:
            paths: picture files.
            progress: text of a progress bar on standard error; None shows none.
        """
        stream: Iterable[Tensor | Failure] = read_photos(paths, self.model.config.size)
        if progress is not None:
            stream = tracked(stream, progress, len(paths))
        failures: list[Failure] = []
        read: list[Path] = []

        def readable() -> Iterator[Tensor]:
            for path, photo in zip(paths, stream, strict=True):
                if isinstance(photo, Failure):
                    failures.append(photo)
                else:
                    read.append(path)
                    yield photo

        features = self._joined(_features(self.look(batch)) for batch in _batches(readable(), self.batch_size))
        return EmbeddedFiles(tuple(read), features, tuple(failures))

    def look(self, images: Num[Tensor, "b 3 H W"]) -> ModelOutput:
        """All the network says of a few images, resized to its input size; see `ModelOutput`."""
        batch = _as_unit_range(images).to(self.device)
        if tuple(batch.shape[2:]) != self.model.config.size:
            batch = F.interpolate(batch, self.model.config.size, mode="bilinear", antialias=True, align_corners=False)
        with torch.inference_mode():
            output: ModelOutput = self.model(batch)
        return output

    def describe(self, images: Num[Tensor, "b 3 H W"]) -> tuple[PartFeatures, UInt8[Tensor, "b h w"] | None]:
        """What `__call__` and `part_maps` say of a few images, in one pass; no part maps from the baseline."""
        output = self.look(images)
        return _features(output), self._part_maps(output)

    def part_maps(self, images: Num[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b h w"]:
        """Where the network sees the parts: at each cell the likeliest part above the threshold, else background."""
        maps = self._part_maps(self.look(images))
        if maps is None:
            raise ValueError("the baseline has no parsing heads: use an HPNet")
        return maps

    def _part_maps(self, output: ModelOutput) -> UInt8[Tensor, "b h w"] | None:
        if output.parsing_logits is None:
            return None
        best, part = output.parsing_logits.float().sigmoid().max(1)
        return torch.where(best > self.model.config.threshold, part + 1, BACKGROUND).to(torch.uint8).clone().cpu()

    def _joined(self, batches: Iterable[PartFeatures]) -> PartFeatures:
        p, d = self.model.config.parts, self.model.dimensions
        nothing = PartFeatures(torch.empty(0, p, d), torch.empty(0, p, dtype=torch.bool))
        return PartFeatures.concatenate([nothing, *batches])


def embed(
    weights: Path, photos: Path, out: Path, *, batch_size: int = 32, device: str | None = None, json: bool = False
) -> int:
    """Embed every photo of a folder into one .npz file.

    The file holds `features` (n, p, d) float32, `visibility` (n, p) bool, `paths` (n) relative to the folder, and
    `weights` (the sha256 of the weights file).

    Args:
        weights: weights file, or the name of bundled weights.
        photos: a folder, searched with all below it, or one photo.
        out: the .npz file to write.
        batch_size: photos that go through the network together.
        device: cpu or cuda; a GPU is taken if there is one.
        json: print what was done as JSON.
    """
    found = find_photos(photos)
    embedder = Embedder(weights, device=device, batch_size=batch_size)
    embedded = embedder.embed_files(found, progress="embedding")
    folder = photos if photos.is_dir() else photos.parent
    write_features(
        out, embedded.features, [path.relative_to(folder).as_posix() for path in embedded.paths], embedder.fingerprint
    )
    tell_skipped(failure.reason for failure in embedded.failures)
    summary = {"embedded": len(embedded.paths), "skipped": len(embedded.failures), "out": str(out)}
    text = f"{len(embedded.paths)} photos embedded, {len(embedded.failures)} skipped: {out}"
    say(json_format.dumps(summary) if json else text)
    return 1 if embedded.failures else 0


def write_features(path: Path, features: PartFeatures, names: Sequence[str], fingerprint: str) -> None:
    """Write embedded photos to an .npz file, by way of a temporary file beside it."""
    with written_whole(path) as beside, beside.open("wb") as file:
        np.savez(
            file,
            features=features.features.cpu().numpy(),
            visibility=features.visibility.cpu().numpy(),
            paths=np.array(names, dtype=np.str_),
            weights=np.array(fingerprint),
        )


def read_features(path: Path) -> tuple[PartFeatures, list[str], str]:
    """What `write_features` wrote: features, names, fingerprint of the weights.

    Raises:
        ValueError: not such a file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            features = PartFeatures(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["visibility"]))
            names, fingerprint = arrays["paths"].tolist(), str(arrays["weights"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a file of embedded photos ({' '.join(str(error).split())})") from error
    if len(names) != len(features):
        raise ValueError(f"{path}: not a file of embedded photos ({len(names)} paths for {len(features)} rows)")
    return features, names, fingerprint


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is none on this machine, or the name means nothing.
    """
    try:
        torch.zeros(1, device=name).cpu()  # a device is usable if a number comes back from it
    # torch raises the first for unknown names, the second for CUDA in a CPU build, the last for lack of a backend.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(name)!r} cannot be used on this machine ({reason}); try cpu") from error
    return torch.device(name)


def _features(output: ModelOutput) -> PartFeatures:
    embedding = F.normalize(output.embedding.float(), dim=-1)
    # A vector of zeros has no direction; such a part is not comparable, whatever the mask says.
    visibility = output.visibility & (embedding.norm(dim=-1) > 0.5)
    return PartFeatures(embedding.clone().cpu(), visibility.clone().cpu())


def _as_unit_range(images: Num[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (b, 3, H, W), not {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 (0..255) or float in [0, 1], not {images.dtype}")
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise ValueError("float images must lie in [0, 1]: divide by 255, and leave normalisation to the model")
    return images.float()


def _batches(photos: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    batch: list[Tensor] = []
    for photo in photos:
        batch.append(photo)
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _hash_of(model: HPNet) -> str:
    """sha256 over names and values of a model that has no file."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
