"""How a change to a gallery gets on disk: all of it or nothing, beside other processes that write and read.

In: a folder and a change. Out: what the change returns, or one line that names the gallery and the reason.
Lance commits; what it does not know is whether a file nobody refers to was left by a writer that was killed or belongs
to one that is about to commit. So whoever writes or reads holds a shared lock on the gallery's folder, which the kernel
lets go when a process dies, and files are deleted only by who is alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hpnet.gallery.columns import GalleryError

if TYPE_CHECKING:
    import pyarrow as pa
    from lance import LanceDataset

Result = TypeVar("Result")
COMMIT_ATTEMPTS: Final = 60
_MAGIC: Final = b"LANC"  # how a file of Lance ends
PATIENCE: Final = 30.0  # seconds to wait for a moment in which nobody else uses the gallery


class CollisionError(Exception):
    """Another process committed something that this commit does not go together with."""


def lance() -> Any:
    """The library, imported when it is needed."""
    os.environ.setdefault("LANCE_LOG", "error")  # else it warns on the terminal, once per query
    import lance

    return lance


@contextmanager
def explained(path: Path, condition: str | None = None) -> Iterator[None]:
    """Turn what Lance raises into one line that names the gallery, or the filter that was wrong."""
    try:
        yield
    except GalleryError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if "commit conflict" in str(error).lower():
            raise CollisionError from error
        # Lance ends with places in its own source; they help nobody here.
        reason = re.sub(r",? ?/\S+\.rs:\d+:\d+", "", str(error))
        of_user = isinstance(error, ValueError) or "Invalid user input" in reason
        line = " ".join(reason.replace("Invalid user input: ", "").split()) or type(error).__name__
        about = f"filter {condition!r}" if condition is not None and of_user else _damaged_file(path) or str(path)
        raise GalleryError(f"{about}: {line}") from error


def _damaged_file(path: Path) -> str | None:
    """The first file that is not as it was written, as far as its size and its last bytes tell: Lance does not say."""
    try:
        pieces = lance().dataset(path).get_fragments()
    except (OSError, ValueError, RuntimeError):
        return None
    for file in (file for piece in pieces for file in piece.metadata.files):
        place = path / "data" / file.path
        try:
            with place.open("rb") as content:
                size = content.seek(0, os.SEEK_END)
                content.seek(max(0, size - len(_MAGIC)))
                if size != file.file_size_bytes or content.read() != _MAGIC:
                    return f"{place}: is damaged"
        except FileNotFoundError:
            return f"{place}: is missing"
        except OSError as error:
            return f"{place}: {error.strerror}"
    return None


def retried(path: Path, change: Callable[[], Result], condition: str | None = None) -> Result:
    """The change; begun anew when another process committed in between what does not go together with it."""
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            with in_use(path), explained(path, condition):
                return change()
        except CollisionError:
            time.sleep(0.01 * (1 + (os.getpid() + attempt) % 7))  # those who collided must not do so again
    raise GalleryError(f"{path}: other processes write all the time; nothing was changed, try again")


def append(snapshot: LanceDataset, people: pa.Table) -> list[int]:
    """Commit more people; returns the ids they got."""
    from lance import LanceDataset, LanceOperation
    from lance.fragment import write_fragments

    written = write_fragments(people, snapshot, mode="append")
    files = {file.path for fragment in written for file in fragment.files}
    committed = LanceDataset.commit(snapshot, LanceOperation.Append(written), read_version=snapshot.version)
    # The commit hands out the ids; the names of the files say which rows of all are ours.
    ours = [piece for piece in committed.get_fragments() if files & {file.path for file in piece.data_files()}]
    rows = committed.scanner(columns=[], fragments=ours, with_row_id=True, scan_in_order=True).to_table()
    return [int(number) for number in rows["_rowid"].to_pylist()]


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Nobody deletes the gallery's files meanwhile, as far as the file system has locks."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise GalleryError(f"{path}: {error.strerror}") from error
    try:
        _locked(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """A moment in which nobody else writes or reads. Yields whether that is certain: not without locks.

    Raises:
        GalleryError: others use the gallery without a pause.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                certain = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = "other processes use it all the time; older versions were not deleted, try again"
                    raise GalleryError(f"{path}: {message}") from None
                time.sleep(0.005)
        yield certain
    finally:
        os.close(folder)


def _locked(folder: int, how: int) -> bool:
    try:
        fcntl.flock(folder, how)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True
