"""The features of a gallery, read from disk and kept in memory as long as they fit.

In: a commit of the gallery, and questions. Out: the nearest people of each. Features of an id never change, so that
after a commit only those of new ids are read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hpnet.gallery.bounds import Question
from hpnet.gallery.columns import part_columns, stored_shape
from hpnet.gallery.commits import explained
from hpnet.gallery.nearest import ROWS_AT_ONCE, Block, Nearest, merged, without
from hpnet.gallery.prepared import Held, nearest_among
from hpnet.parts import PartFeatures

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD of malloc.h
_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD
_MANY_PAIRS: Final = 1 << 24  # of queries and people: so long a search that returning its memory takes no time


class Reader:
    """Reads a gallery's features, and holds them.

    Attributes:
        path: the gallery's folder.
        held: everybody, if they fit; else nobody.
    """

    def __init__(self, path: Path, memory: int) -> None:
        self.path = path
        self._memory = memory
        self.held, self._read = Held(), dict[tuple[object, ...], NDArray[np.int64]]()

    def nearest(
        self, snapshot: LanceDataset, questions: Sequence[Question], condition: str | None
    ) -> Sequence[Nearest]:
        """From memory if the gallery fits, else from disk, some thousand people at a time."""
        if (shape := stored_shape(snapshot.schema)) is None:
            return nearest_among([], questions)
        width = snapshot.schema.field("features").type.value_type.bit_width // 8
        if snapshot.count_rows() * shape[0] * shape[1] * width > self._memory:
            self.held, self._read = Held(), {}
            return nearest_among(merged(self.scanned(snapshot, condition)), questions)
        allowed = None if condition is None else self._ids(snapshot, condition)
        before = len(self.held)
        held = self._loaded(snapshot)
        answers = [held.nearest(question, allowed) for question in questions]
        pairs = len(held) * sum(len(question) for question in questions)
        if len(held) - before > ROWS_AT_ONCE or pairs > _MANY_PAIRS:
            _give_back_memory()
        return answers

    def _loaded(self, snapshot: LanceDataset) -> Held:
        """Everybody, in memory. Features of an id never change: only those of new ids are read."""
        fragments = {_state(fragment): fragment for fragment in snapshot.get_fragments()}
        if fragments.keys() == self._read.keys():
            return self.held
        held, read = self.held, self._read
        self.held, self._read = Held(), {}  # all is read anew if this is interrupted
        new = {state: self._ids(snapshot, None, [piece]) for state, piece in fragments.items() if state not in read}
        before = _joined([ids for state, ids in read.items() if state not in fragments])
        held.remove(np.setdiff1d(before, _joined(new.values())))
        for state, ids in new.items():
            if not np.isin(ids, before).all():
                with _buffers_given_back():
                    for block in self.scanned(snapshot, None, [fragments[state]]):
                        held.add(without(block, before))
        self.held, self._read = held, {state: new[state] if state in new else read[state] for state in fragments}
        return held

    def scanned(
        self, snapshot: LanceDataset, condition: str | None, fragments: list[LanceFragment] | None = None
    ) -> Iterator[Block]:
        """The same from disk, in the order of the commits."""
        shape, names = stored_shape(snapshot.schema), part_columns(snapshot.schema)
        with explained(self.path, condition):
            scanner = snapshot.scanner(
                columns=["features", *names],
                filter=condition,
                fragments=fragments,
                batch_size=ROWS_AT_ONCE,
                batch_readahead=2,
                with_row_id=True,
                scan_in_order=True,
            )
            for batch in scanner.to_batches():
                values = batch["features"].flatten().to_numpy().reshape(len(batch), *(shape or ()))
                shown = np.stack([batch[name].to_numpy(zero_copy_only=False) for name in names], axis=1)
                # Each part's features lie together in memory: they are converted three times faster.
                by_part = torch.from_numpy(values.transpose(1, 0, 2).copy(order="C"))
                people = PartFeatures(by_part.transpose(0, 1), torch.from_numpy(shown))
                yield Block(batch["_rowid"].to_numpy().astype(np.int64), people)

    def _ids(
        self, snapshot: LanceDataset, condition: str | None, fragments: list[LanceFragment] | None = None
    ) -> NDArray[np.int64]:
        with explained(self.path, condition):
            scanner = snapshot.scanner(columns=[], filter=condition, fragments=fragments, with_row_id=True)
            table = scanner.to_table()
        return np.asarray(table["_rowid"].to_numpy(), dtype=np.int64)


def _give_back_memory() -> None:
    """Have glibc return what searching took and freed; it keeps hundreds of megabytes otherwise."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


@contextmanager
def _buffers_given_back() -> Iterator[None]:
    """Have glibc return large buffers of any thread once they are freed, for no trimming reaches those of others.

    Afterwards its limits are those that it sets itself for processes that have freed large arrays.
    """
    option = _of_glibc("mallopt")
    if option is None:
        yield
        return
    option(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        option(_MMAP_THRESHOLD, 32 << 20)
        option(_TRIM_THRESHOLD, 64 << 20)


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None  # another C library
    return found


def _joined(ids: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *ids])


def _state(fragment: LanceFragment) -> tuple[object, ...]:
    """Changes when the fragment's features or who is in it do."""
    about = fragment.metadata
    removed = about.deletion_file.path(about.id) if about.deletion_file else ""
    return (about.id, removed, *(file.path for file in about.files))
