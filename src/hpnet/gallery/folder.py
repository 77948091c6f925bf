"""The folder of a gallery: made, opened, and what is written on it: the format, and whose features are in it.

In: a path. Out: the Lance data set, if it is a gallery that can be read; else one line that says why not.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hpnet.files import fingerprint
from hpnet.gallery.columns import GalleryError
from hpnet.gallery.commits import explained, lance

if TYPE_CHECKING:
    from lance import LanceDataset

FORMAT: Final = 1  # of new galleries
READABLE: Final = (1,)  # formats that are read and written as they are; a change of format adds its way up here


def make_folder(path: Path, fingerprint: str, dtype: str) -> None:
    """Write an empty gallery: made beside, then renamed, so that nobody sees half of it.

    Raises:
        GalleryError: something lies at `path` already, or the disk refuses.
    """
    import pyarrow as pa

    about = {"hpnet.format": str(FORMAT), "hpnet.weights": fingerprint, "hpnet.dtype": dtype}
    fields = [pa.field("path", pa.string()), pa.field("added", pa.timestamp("us", "UTC"))]
    empty = pa.schema(fields, metadata=about).empty_table()
    # Renaming fails on a folder with anything in it, also if another process was faster.
    beside = path.resolve().with_name(f".{path.resolve().name}.{os.getpid()}")
    try:
        with explained(path):
            beside.parent.mkdir(parents=True, exist_ok=True)
            lance().write_dataset(empty, beside, mode="overwrite", enable_stable_row_ids=True)
        beside.rename(path)
    except OSError as error:
        taken = "already exists and is not empty; open it, or choose another path"
        raise GalleryError(f"{path}: {taken if path.exists() else error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def open_folder(path: Path, version: int | None = None) -> LanceDataset:
    """The newest commit of a gallery, or an older version.

    Raises:
        GalleryError: nothing there, not a gallery, of a format unknown here, damaged, or without that version.
    """
    with explained(path):
        if not path.exists():
            raise GalleryError(f"{path}: no such gallery")
        if not (path / "_versions").is_dir():
            raise GalleryError(f"{path}: not a gallery (no Lance data set in it)")
        dataset = lance().dataset(path) if version is None else _at_version(path, version)
    about = dataset.schema.metadata or {}
    if not {b"hpnet.format", b"hpnet.weights", b"hpnet.dtype"} <= about.keys():
        raise GalleryError(f"{path}: a Lance data set, but not a gallery of hpnet")
    if (kept := about[b"hpnet.format"].decode()) not in map(str, READABLE):
        readable = " and ".join(map(str, READABLE))
        raise GalleryError(f"{path}: has format {kept}, this hpnet reads {readable}; update hpnet")
    return dataset


def _at_version(path: Path, version: int) -> LanceDataset:
    try:
        return lance().dataset(path, version=version)
    except (ValueError, OSError, OverflowError) as error:
        if "not found" in str(error).lower() or version < 1:
            raise GalleryError(f"{path}: has no version {version}; `history` lists those there are") from error
        raise


def fingerprint_of(weights: str | Path) -> str:
    """The text itself, or the fingerprint of the file it names."""
    if isinstance(weights, Path) and not weights.is_file():
        raise GalleryError(f"{weights}: no such weights file")
    if not str(weights):
        raise GalleryError("weights: the fingerprint is empty")
    try:
        return fingerprint(Path(weights))
    except OSError:
        return str(weights)
