"""People kept on disk, and found again by the parts both photos show.

In: `PartFeatures` with the path, identity, camera and time of each photo. Out: for each query its nearest `Match`es.
A gallery is one Lance data set. Every change is one commit: it is there for every other process or not at all, also
when the writer is killed; a reader sees the last commit. No picture is kept, only features.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from hpnet.distance import Metric, Visibility
from hpnet.gallery.columns import (
    ATTRIBUTES,
    LAYOUTS,
    GalleryError,
    Moment,
    Value,
    among,
    new_fields,
    part_columns,
    sql_moment,
    stored_shape,
    typed_column,
)
from hpnet.gallery.nearest import (
    ROWS_AT_ONCE,
    Block,
    Nearest,
    at_unit_length,
    chosen_parts,
    is_compared,
    merged,
    ranked_distance,
    restricted,
    together,
)
from hpnet.parts import PARTS, Part, PartFeatures

if TYPE_CHECKING:
    import pyarrow as pa
    from lance import LanceDataset, LanceFragment

Result = TypeVar("Result")
FORMAT: Final = 1
MEMORY: Final = 2 << 30  # bytes of features a gallery keeps in memory unless told otherwise
QUERIES_AT_ONCE: Final = 512  # 32 MB of distances
_COMMIT_ATTEMPTS: Final = 60


@dataclass(frozen=True)
class Match:
    """A person of the gallery, as found by a search.

    Attributes:
        id: the gallery's number for this photo; stays the same until it is removed, and is never given again.
        path: where the photo lies, as it was given.
        distance: to the query, at least 0.
        parts: the parts that were compared.
        identity, camera, time: as they were given (a time with a zone comes back in UTC); None if unknown.
    """

    id: int
    path: str
    distance: float
    parts: tuple[Part, ...]
    identity: Value | None
    camera: Value | None
    time: Moment | None


class Gallery:
    """People on disk: add, remove, expire, search. Made by `Gallery.create` or `Gallery.open`.

    Ids are Lance's stable row ids: handed out by the commit itself, so that several processes adding at once never get
    the same one and none is used twice, counted from 0 in the order of commits, and unchanged by removal and
    compaction. Attributes nobody ever gave have no column; the first value given makes it and fixes its type.

    Attributes:
        path: the folder.
        fingerprint: of the weights whose features are in it.
    """

    def __init__(self, dataset: LanceDataset, path: Path, memory: int) -> None:
        self.path = path
        self.fingerprint = dataset.schema.metadata[b"hpnet.weights"].decode()
        self._dataset = dataset
        self._memory = memory
        self._held: dict[tuple[object, ...], list[Block]] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        weights: str | Path,
        *,
        dtype: Literal["float16", "float32"] = "float16",
        memory: int = MEMORY,
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            path: a folder that does not exist yet, or an empty one.
            weights: whose features go in: an `Embedder`'s fingerprint, or a weights file, which is hashed.
            dtype: the precision in which features are kept.
            memory: bytes of features to keep in memory at most; a larger gallery is read anew by every search.

        Raises:
            GalleryError: something lies at `path` already, or `weights` is a path that does not exist.
        """
        import pyarrow as pa

        path = Path(path)
        if dtype not in ("float16", "float32"):
            raise GalleryError(f"dtype must be float16 or float32, not {dtype!r}")
        about = {"hpnet.format": str(FORMAT), "hpnet.weights": _fingerprint(weights), "hpnet.dtype": dtype}
        fields = [pa.field("path", pa.string()), pa.field("added", pa.timestamp("us", "UTC"))]
        empty = pa.schema(fields, metadata=about).empty_table()
        # Made beside, then renamed, which fails on a folder with anything in it, also if another process was faster.
        beside = path.resolve().with_name(f".{path.resolve().name}.{os.getpid()}")
        try:
            with _explained(path):
                beside.parent.mkdir(parents=True, exist_ok=True)
                _lance().write_dataset(empty, beside, mode="overwrite", enable_stable_row_ids=True)
            beside.rename(path)
        except OSError as error:
            reason = (
                "already exists and is not empty; open it, or choose another path" if path.exists() else error.strerror
            )
            raise GalleryError(f"{path}: {reason}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls.open(path, memory=memory)

    @classmethod
    def open(cls, path: str | Path, weights: str | Path | None = None, *, memory: int = MEMORY) -> Gallery:
        """Open a gallery.

        Args:
            path: its folder.
            weights: if given, must be the weights the gallery was made for: fingerprint or file, as in `create`.
            memory: as in `create`.

        Raises:
            GalleryError: nothing there, not a gallery, made by a newer hpnet, damaged, or made for other weights.
        """
        path = Path(path)
        if not path.exists():
            raise GalleryError(f"{path}: no such gallery")
        if not (path / "_versions").is_dir():
            raise GalleryError(f"{path}: not a gallery (no Lance data set in it)")
        with _explained(path):
            dataset = _lance().dataset(path)
        about = dataset.schema.metadata or {}
        if not {b"hpnet.format", b"hpnet.weights", b"hpnet.dtype"} <= about.keys():
            raise GalleryError(f"{path}: a Lance data set, but not a gallery of hpnet")
        if int(about[b"hpnet.format"]) > FORMAT:
            newer = about[b"hpnet.format"].decode()
            raise GalleryError(f"{path}: has format {newer}, this hpnet reads up to {FORMAT}; update hpnet")
        gallery = cls(dataset, path, memory)
        gallery._check_weights(weights)
        return gallery

    def __len__(self) -> int:
        with _explained(self.path):
            return int(self._latest().count_rows())

    def __repr__(self) -> str:
        return f"Gallery({str(self.path)!r}, {len(self)} people, weights {self.fingerprint[:12]})"

    def add(
        self,
        features: PartFeatures,
        paths: Sequence[str | Path],
        cameras: Sequence[Value | None] | None = None,
        times: Sequence[Moment | None] | None = None,
        identities: Sequence[Value | None] | None = None,
        *,
        weights: str | Path | None = None,
    ) -> list[int]:
        """Add n people in one commit: when this returns they are on disk; if it fails or is killed, none is.

        Adding the same photo again keeps both.

        Args:
            features: of n photos. Visible parts are stored at exactly unit length.
            paths: n paths or URIs of the photos.
            cameras: n whole numbers or n names; None where unknown.
            times: n seconds (of any clock) or n datetimes, all with a zone or all without; None where unknown.
            identities: as cameras.
            weights: if given, must be the gallery's: fingerprint or file.

        Returns:
            The n new ids, in order.

        Raises:
            GalleryError: lengths, parts, dimensions, weights or the type of a value do not fit; or the disk refuses.
        """
        self._check_weights(weights)
        if isinstance(paths, (str, Path)):
            raise GalleryError(f"paths must be a list, one path per person, not {str(paths)!r} alone")
        attributes = zip(ATTRIBUTES, (identities, cameras, times), strict=True)
        known: dict[str, Sequence[object]] = {name: values for name, values in attributes if values is not None}
        for name, values in {"path": paths, **known}.items():
            if len(values) != len(features):
                raise GalleryError(f"{name}: {len(values)} given for {len(features)} people")
        if not len(features):
            return []
        columns = {name: typed_column(name, values) for name, values in known.items()}
        people = self._prepared(features, paths, {name: kept for name, kept in columns.items() if kept is not None})
        return self._commit(people, tuple(features.features.shape[1:]))

    def remove(self, ids: Iterable[int]) -> int:
        """Remove people in one commit.

        Args:
            ids: as `add` and `search` give them. Ids that are not (or no longer) in the gallery are ignored.

        Returns:
            How many were removed.
        """
        listed = {int(number) for number in ids if number >= 0}
        return self._delete(among(listed)) if listed else 0

    def expire(self, before: Moment) -> int:
        """Remove everybody last seen before a moment, in one commit.

        A person without a time counts by the moment of being added, so that nobody stays for ever.

        Args:
            before: Unix seconds or a datetime (without a zone: local time). If the times in this gallery are seconds
                of another clock, seconds of that clock.

        Returns:
            How many were removed.
        """
        aware = before.astimezone(UTC) if isinstance(before, datetime) else datetime.fromtimestamp(before, UTC)
        unknown = f"added < {sql_moment(aware)}"
        schema = self._latest().schema
        if "time" not in schema.names:
            return self._delete(unknown)
        kind = str(schema.field("time").type)
        limit = {
            "double": repr(before.timestamp() if isinstance(before, datetime) else float(before)),
            "timestamp[us, tz=UTC]": sql_moment(aware),
            "timestamp[us]": sql_moment(aware.astimezone().replace(tzinfo=None)),
        }[kind]
        return self._delete(f"time < {limit} OR (time IS NULL AND {unknown})")

    def search(
        self,
        features: PartFeatures,
        k: int = 10,
        metric: Metric = "euclidean",
        visibility: Visibility = "common",
        parts: Iterable[Part | str] | None = None,
        filter: str | None = None,  # noqa: A002  (Lance's word, and SQL's)
    ) -> list[list[Match]]:
        """Find the nearest people, exactly.

        People who show no part in common with the query have no distance and are not in the list; only
        `visibility="query"` and `"ignore"` do compare what was not seen. So a list may be shorter than k.

        Args:
            features: of q queries.
            k: matches wanted per query.
            metric: as in `part_distance`.
            visibility: as in `part_distance`; the defaults are the paper's Eq. 1.
            parts: compare these alone, by name or as `Part` ("same trousers": `parts=["upper_legs"]`).
            filter: SQL condition on who is searched, over the columns path, added, identity, camera, time, head,
                torso, upper_legs, lower_legs (those that were ever given) and _rowid, the id:
                `"camera = 2 AND identity IS NOT NULL"`, `"time >= timestamp '2024-05-01 00:00:00'"`.

        Returns:
            Per query at most k matches, nearest first; of equal distances the lower id first.

        Raises:
            GalleryError: the filter is wrong, or parts or dimensions are not the gallery's.
            ValueError: k is below 1, or an option is unknown.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        snapshot = self._latest()
        query = PartFeatures(at_unit_length(features), features.visibility.cpu())
        chosen = chosen_parts(parts, query.features.shape[1])
        self._check_shape(snapshot, tuple(query.features.shape[1:]))
        query = restricted(query, chosen)
        groups = [slice(start, start + QUERIES_AT_ONCE) for start in range(0, len(query), QUERIES_AT_ONCE)]
        nearest = [Nearest(k) for _ in groups]
        for ids, people in self._blocks(snapshot, filter):
            shown = restricted(people, chosen)
            for group, best in zip(groups, nearest, strict=True):
                best.offer(ids, ranked_distance(query[group], shown, metric, visibility))
        found = [row for group, best in zip(groups, nearest, strict=True) for row in best.rows(len(query[group]))]
        return self._matches(snapshot, found, query.visibility, chosen, visibility)

    def fetch(self, ids: Sequence[int]) -> PartFeatures:
        """The stored features of people, float32, in the order asked for.

        Args:
            ids: at least one.

        Raises:
            GalleryError: an id is not in the gallery.
        """
        snapshot = self._latest()
        if stored_shape(snapshot.schema) is None:
            raise GalleryError(f"{self.path}: is empty")
        found = list(self._scanned(snapshot, among(ids)))
        place = {number: row for row, number in enumerate(number for block in found for number in block.ids.tolist())}
        if missing := [number for number in ids if number not in place]:
            raise GalleryError(f"{self.path}: has no person with id {missing[0]}")
        return together(found).people[[place[number] for number in ids]].to(torch.float32)

    def _latest(self) -> LanceDataset:
        """The last commit, as a value of its own: what others commit meanwhile does not change it."""
        with _explained(self.path):
            self._dataset = snapshot = self._dataset.checkout_version(self._dataset.latest_version)
        return snapshot

    def _check_weights(self, weights: str | Path | None) -> None:
        if weights is not None and (given := _fingerprint(weights)) != self.fingerprint:
            raise GalleryError(
                f"{self.path}: holds features of the weights {self.fingerprint[:16]}, not of {given[:16]}; "
                "features of different weights cannot be compared"
            )

    def _check_shape(self, snapshot: LanceDataset, given: tuple[int, ...]) -> None:
        if given[0] not in {len(names) for names in LAYOUTS}:
            raise GalleryError(f"{self.path}: a person has {len(PARTS)} parts (or 1, the whole), not {given[0]}")
        if (kept := stored_shape(snapshot.schema)) not in (None, given):
            raise GalleryError(f"{self.path}: holds features of (parts, dimensions) {kept}, not {given}")

    def _prepared(
        self, features: PartFeatures, paths: Sequence[str | Path], columns: Mapping[str, pa.Array]
    ) -> pa.Table:
        """What will stand on disk."""
        import pyarrow as pa

        about = self._dataset.schema.metadata
        values = at_unit_length(features).to(torch.float16 if about[b"hpnet.dtype"] == b"float16" else torch.float32)
        if not bool(values.isfinite().all()):
            raise GalleryError("features: a part that is not visible holds values beyond float16; set it to zero")
        count, parts, dimensions = values.shape
        names = next((names for names in LAYOUTS if len(names) == parts), ())
        shown = zip(names, features.visibility.cpu().numpy().T, strict=bool(names))
        try:
            where = pa.array([str(path) for path in paths], pa.string())
        except UnicodeEncodeError as error:
            raise GalleryError(f"paths: {error.object!r} is not valid text; rename the file") from error
        flat = pa.array(values.contiguous().numpy().reshape(-1))
        table = {
            "path": where,
            "added": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", "UTC")),
            "features": pa.FixedSizeListArray.from_arrays(flat, parts * dimensions),
        }
        return pa.table(table | {name: pa.array(column) for name, column in shown} | dict(columns))

    def _commit(self, people: pa.Table, shape: tuple[int, ...]) -> list[int]:
        """Append people, after making the columns that are new."""

        def change() -> list[int]:
            snapshot = self._latest()
            self._check_shape(snapshot, shape)
            if missing := new_fields(self.path, snapshot.schema, people.schema):
                snapshot.add_columns(missing)
                snapshot = self._latest()
            return self._append(snapshot, people)

        return self._retried(change)

    def _retried(self, change: Callable[[], Result]) -> Result:
        """The change; begun anew when another process committed in between what does not go together with it."""
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                with _explained(self.path):
                    return change()
            except _CollisionError:
                time.sleep(0.01 * (1 + (os.getpid() + attempt) % 7))  # those who collided must not do so again
        raise GalleryError(f"{self.path}: other processes write all the time; nothing was changed, try again")

    def _append(self, snapshot: LanceDataset, people: pa.Table) -> list[int]:
        from lance import LanceDataset, LanceOperation
        from lance.fragment import write_fragments

        written = write_fragments(people, snapshot, mode="append")
        files = {file.path for fragment in written for file in fragment.files}
        committed = LanceDataset.commit(snapshot, LanceOperation.Append(written), read_version=snapshot.version)
        # The commit hands out the ids; the names of the files say which rows of all are ours.
        ours = [piece for piece in committed.get_fragments() if files & {file.path for file in piece.data_files()}]
        rows = committed.scanner(columns=[], fragments=ours, with_row_id=True, scan_in_order=True).to_table()
        return [int(number) for number in rows["_rowid"].to_pylist()]

    def _delete(self, condition: str) -> int:
        return self._retried(lambda: int(self._latest().delete(condition)["num_deleted_rows"]))

    def _blocks(self, snapshot: LanceDataset, condition: str | None) -> Iterator[Block]:
        """Everybody who is searched, some thousands at a time: from memory if the gallery fits, else from disk."""
        if (shape := stored_shape(snapshot.schema)) is None:
            return
        width = snapshot.schema.field("features").type.value_type.bit_width // 8
        if snapshot.count_rows() * shape[0] * shape[1] * width > self._memory:
            self._held = {}
            yield from self._scanned(snapshot, condition)
            return
        allowed = None if condition is None else self._ids(snapshot, condition)
        for block in merged(self._loaded(snapshot)):
            if allowed is None:
                yield block
                continue
            rows = np.flatnonzero(np.isin(block.ids, allowed))
            yield Block(block.ids[rows], block.people[torch.from_numpy(rows)])

    def _loaded(self, snapshot: LanceDataset) -> list[Block]:
        """Everybody, in memory; what changed since the last search is read anew, by Lance's unit of writing."""
        fragments = {_state(fragment): fragment for fragment in snapshot.get_fragments()}
        held = {state: blocks for state, blocks in self._held.items() if state in fragments}
        self._held = held  # what is gone makes room before the new is read
        for state in fragments.keys() - held.keys():
            held[state] = list(self._scanned(snapshot, None, [fragments[state]]))
        return [block for state in fragments for block in held[state]]

    def _scanned(
        self, snapshot: LanceDataset, condition: str | None, fragments: list[LanceFragment] | None = None
    ) -> Iterator[Block]:
        """The same from disk, in the order of the commits."""
        shape, names = stored_shape(snapshot.schema), part_columns(snapshot.schema)
        with _explained(self.path, condition):
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
                people = PartFeatures(torch.from_numpy(values.copy()), torch.from_numpy(shown))
                yield Block(batch["_rowid"].to_numpy().astype(np.int64), people)

    def _ids(self, snapshot: LanceDataset, condition: str) -> NDArray[np.int64]:
        with _explained(self.path, condition):
            table = snapshot.to_table(columns=[], filter=condition, with_row_id=True)
        return np.asarray(table["_rowid"].to_numpy(), dtype=np.int64)

    def _matches(
        self,
        snapshot: LanceDataset,
        found: list[list[tuple[int, float]]],
        query_shows: Bool[Tensor, "q p"],
        chosen: tuple[int, ...],
        visibility: Visibility,
    ) -> list[list[Match]]:
        """What is known of the people found."""
        names = part_columns(snapshot.schema)
        known = [name for name in ATTRIBUTES if name in snapshot.schema.names]
        wanted = among({number for row in found for number, _ in row})
        with _explained(self.path):
            table = snapshot.to_table(columns=["path", *known, *names], filter=wanted, with_row_id=True)
        people: dict[int, dict[str, Any]] = {row["_rowid"]: row for row in table.to_pylist()}

        def match(number: int, distance: float, shows: list[bool]) -> Match:
            person = people[number]
            seen = [person[names[part]] for part in chosen]
            pairs = zip(chosen, shows, seen, strict=True)
            parts = [part for part, mine, theirs in pairs if is_compared(visibility, mine, theirs)]
            compared = PARTS if len(names) == 1 and parts else tuple(Part(part) for part in parts)
            return Match(number, person["path"], distance, compared, *(person.get(name) for name in ATTRIBUTES))

        rows = zip(found, query_shows.tolist(), strict=True)
        return [[match(number, distance, shows) for number, distance in row] for row, shows in rows]


class _CollisionError(Exception):
    """Another process committed something that this commit does not go together with."""


def _lance() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # else it warns on the terminal, once per query
    import lance

    return lance


@contextmanager
def _explained(path: Path, condition: str | None = None) -> Iterator[None]:
    """Turn what Lance raises into one line that names the gallery, or the filter that was wrong."""
    try:
        yield
    except GalleryError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if "commit conflict" in str(error).lower():
            raise _CollisionError from error
        # Lance ends with places in its own source; they help nobody here.
        reason = re.sub(r",? ?/\S+\.rs:\d+:\d+", "", str(error)).replace("Invalid user input: ", "")
        line = " ".join(reason.split()) or type(error).__name__
        about = f"filter {condition!r}" if condition is not None and isinstance(error, ValueError) else str(path)
        raise GalleryError(f"{about}: {line}") from error


def _fingerprint(weights: str | Path) -> str:
    """The text itself, or the sha256 of the file it names."""
    if isinstance(weights, Path) and not weights.is_file():
        raise GalleryError(f"{weights}: no such weights file")
    if not str(weights):
        raise GalleryError("weights: the fingerprint is empty")
    try:
        with Path(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return str(weights)


def _state(fragment: LanceFragment) -> tuple[object, ...]:
    """Changes when the fragment's features or who is in it do; removals only ever grow in number."""
    about = fragment.metadata
    removed = about.deletion_file.num_deleted_rows if about.deletion_file else 0
    return (about.id, removed, *(file.path for file in about.files))
