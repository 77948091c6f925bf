"""Files that are either whole or not there: written beside their place, then renamed; and what tells them apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

_WEIGHTS: Final = "hpnet-weights/"  # how the format of weights files that make features begins
_STORY: Final = ("training", "version")  # what their header tells and no feature depends on


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to. It becomes `path` when the block ends well, and vanishes otherwise.

    The folder is made; the suffix is kept, for writers that choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file that a person can read too."""
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """What tells apart weights that make different features, 64 hexadecimal digits.

    Of this project's weights it is the sha256 of the tensors and of all in the header that features depend on. The
    calibration is not among it: weights that are calibrated anew keep their galleries. Of any other file it is the
    sha256 of the file.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256(_lasting_header(file, path.stat().st_size))
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


def _lasting_header(file: BinaryIO, size: int) -> bytes:
    """Read past the header of weights and give what features depend on; of another file nothing, and stay at its start.

    A safetensors file is the header's length in 8 bytes, the header in JSON, and the tensors.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length)) if length <= size else {}
        texts = header["__metadata__"]
        if texts["format"].startswith(_WEIGHTS):
            lasting = {name: text for name, text in texts.items() if name not in _STORY}
            return json.dumps({**header, "__metadata__": lasting}, sort_keys=True).encode()
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    file.seek(0)
    return b""
