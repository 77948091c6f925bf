"""People kept on disk, and found again by the parts both photos show.

In: `PartFeatures` with the path, identity, camera and time of each photo. Out: for each query its nearest `Match`es.
A gallery is one Lance data set. Every change is one commit: it is there for every other process or not at all, also
when the writer is killed; a reader sees the last commit. No picture is kept, only features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import torch

from hpnet.calibration import Calibration
from hpnet.distance import Metric, Visibility
from hpnet.gallery import answers, listing, versions
from hpnet.gallery.bounds import Question
from hpnet.gallery.columns import (
    ATTRIBUTES,
    LAYOUTS,
    THUMBNAIL,
    Attribute,
    GalleryError,
    Moment,
    Value,
    among,
    attribute_columns,
    fitted_to,
    person_columns,
    sql_moment,
    stored_shape,
    thumbnail_column,
    typed_column,
)
from hpnet.gallery.commits import Result, alone, append, explained, in_use, retried
from hpnet.gallery.folder import fingerprint_of, make_folder, open_folder
from hpnet.gallery.nearest import at_unit_length, chosen_parts, restricted, together
from hpnet.gallery.reading import Reader
from hpnet.parts import PARTS, Part, PartFeatures

if TYPE_CHECKING:
    import pyarrow as pa
    from lance import LanceDataset

MEMORY: Final = 2 << 30  # bytes of features a gallery keeps in memory unless told otherwise
_IDS: Final = 1 << 63  # there are no more
QUERIES_AT_ONCE: Final = 512  # 32 MB of distances


class Gallery:
    """People on disk: add, remove, expire, list, search. Made by `Gallery.create` or `Gallery.open`.

    Ids are Lance's stable row ids: handed out by the commit itself, so that several processes adding at once never get
    the same one and none is used twice, counted from 0 in the order of commits, and unchanged by removal and
    compaction. Attributes nobody ever gave have no column; the first value given makes it and fixes its type.

    Any number of processes may use one gallery at once; a `Gallery` value serves one thread at a time.

    Attributes:
        path: the folder.
        fingerprint: of the weights whose features are in it.
    """

    def __init__(self, dataset: LanceDataset, path: Path, memory: int, version: int | None = None) -> None:
        self.path = path
        self._version = version
        self.fingerprint = dataset.schema.metadata[b"hpnet.weights"].decode()
        self._dataset = dataset
        self._reader = Reader(path, memory)

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
        if dtype not in ("float16", "float32"):
            raise GalleryError(f"dtype must be float16 or float32, not {dtype!r}")
        make_folder(Path(path), fingerprint_of(weights), dtype)
        return cls.open(path, memory=memory)

    @classmethod
    def open(
        cls, path: str | Path, weights: str | Path | None = None, *, memory: int = MEMORY, version: int | None = None
    ) -> Gallery:
        """Open a gallery.

        Args:
            path: its folder.
            weights: if given, must be the weights the gallery was made for: fingerprint or file, as in `create`.
            memory: as in `create`.
            version: an older state, as `history` numbers them, for reading only; the newest by default.

        Raises:
            GalleryError: nothing there, not a gallery, made by a newer hpnet, damaged, made for other weights, or the
                version is not there (any more).
        """
        path = Path(path)
        gallery = cls(open_folder(path, version), path, memory, version)
        gallery._check_weights(weights)
        return gallery

    def __len__(self) -> int:
        return self.count()

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
        attributes: Mapping[str, Sequence[Attribute | None]] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
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
            attributes: by name n numbers, texts, yes-or-no values or datetimes each; None where unknown. Filters ask
                for them by name, matches carry them.
            thumbnails: n small pictures, the bytes of JPEG files; None where there is none. No picture is kept unless
                given here.
            weights: if given, must be the gallery's: fingerprint or file.

        Returns:
            The n new ids, in order.

        Raises:
            GalleryError: lengths, parts, dimensions, weights, the type of a value or the name of an attribute do not
                fit; or the disk refuses.
        """
        self._check_weights(weights)
        if isinstance(paths, (str, Path)):
            raise GalleryError(f"paths must be a list, one path per person, not {str(paths)!r} alone")
        known = dict(zip(ATTRIBUTES, (identities, cameras, times), strict=True))
        own = {} if attributes is None else dict(attributes)
        for name, values in {"path": paths, **known, **own, THUMBNAIL: thumbnails}.items():
            if values is not None and len(values) != len(features):
                raise GalleryError(f"{name}: {len(values)} given for {len(features)} people")
        if not len(features):
            return []
        columns = {name: typed_column(name, values) for name, values in known.items() if values is not None}
        columns |= attribute_columns(own)
        columns |= {} if thumbnails is None else {THUMBNAIL: thumbnail_column(thumbnails)}
        return self._commit(features, paths, {name: column for name, column in columns.items() if column is not None})

    def remove(self, ids: Iterable[int] | None = None, *, filter: str | None = None) -> int:  # noqa: A002
        """Remove people in one commit.

        They are not found any more; their features stay on disk, in older versions, until `compact`.

        Args:
            ids: as `add` and `search` give them. Ids that are not (or no longer) in the gallery are ignored.
            filter: instead of ids, a condition as in `search`; everybody it is true of is removed.

        Returns:
            How many were removed.

        Raises:
            GalleryError: the filter is wrong; or ids and a filter are given, or neither.
        """
        if (ids is None) == (filter is None):
            raise GalleryError("remove: give either ids or a filter")
        if ids is None:
            return self._delete(filter or "", filter)
        listed = {number for each in ids if 0 <= (number := index(each)) < _IDS}
        return self._delete(among(listed)) if listed else 0

    def expire(self, before: Moment) -> int:
        """Remove everybody last seen before a moment, in one commit.

        A person without a time counts by the moment of being added, so that nobody stays for ever.

        Args:
            before: seconds, or a datetime (without a zone: local time). In a gallery whose times are seconds of
                another clock, seconds of that clock.

        Returns:
            How many were removed.
        """
        return self._delete(self.seen_before(before))

    def seen_before(self, moment: Moment) -> str:
        """The condition by which `expire` removes, as a filter: to count or list them first."""
        aware = moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
        unknown = f"added < {sql_moment(aware)}"
        schema = self._latest().schema
        if "time" not in schema.names:
            return unknown
        limit = {
            "double": repr(moment.timestamp() if isinstance(moment, datetime) else float(moment)),
            "timestamp[us, tz=UTC]": sql_moment(aware),
            "timestamp[us]": sql_moment(aware.astimezone().replace(tzinfo=None)),
        }[str(schema.field("time").type)]
        return f"time < {limit} OR (time IS NULL AND {unknown})"

    def entries(
        self,
        filter: str | None = None,  # noqa: A002  (as in search)
        limit: int = 20,
        *,
        newest: bool = False,
        after: int | None = None,
    ) -> list[listing.Entry]:
        """People page by page, without their features, in the order in which they were added.

        Args:
            filter: a condition as in `search`.
            limit: people on a page.
            newest: the last added first.
            after: the id of the last person of the page before.

        Raises:
            GalleryError: the filter is wrong.
            ValueError: limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        with in_use(self.path), explained(self.path, filter):
            return listing.entries(self._latest(), filter, limit, newest, after)

    def count(self, filter: str | None = None) -> int:  # noqa: A002  (as in search)
        """How many people there are, or how many the filter is true of."""
        with in_use(self.path), explained(self.path, filter):
            return int(self._latest().count_rows(filter))

    def counts(self, by: str, filter: str | None = None) -> dict[Attribute | None, int]:  # noqa: A002  (as in search)
        """How many people there are of each kind.

        Args:
            by: camera, identity, time, an attribute's name; or "part", which counts who shows each part.
            filter: a condition as in `search`.

        Returns:
            The largest first; parts in their order, by the names that filters use. None counts those of whom it is
            unknown.

        Raises:
            GalleryError: the filter is wrong, or there is no such attribute.
        """
        with in_use(self.path), explained(self.path, filter):
            return listing.counts(self._latest(), by, filter)

    def thumbnails(self, ids: Sequence[int]) -> list[bytes | None]:
        """The small pictures of people, in the order asked for; None where none was given.

        Raises:
            GalleryError: an id is not in the gallery.
        """
        with in_use(self.path), explained(self.path):
            snapshot = self._latest()
            kept = [name for name in (THUMBNAIL,) if name in snapshot.schema.names]
            table = snapshot.to_table(columns=kept, filter=among(ids), with_row_id=True)
        found = {row["_rowid"]: row.get(THUMBNAIL) for row in table.to_pylist()}
        self._check_present(ids, found)
        return [found[number] for number in ids]

    def compact(self, keep: timedelta = timedelta(0)) -> versions.Compaction:
        """Tidy up: few large files, without those who were removed, and nothing of older versions.

        Ids stay. After this the features of people who were removed are in no file of the gallery, unless `keep` says
        so; what killed writers left is deleted too. Others may write and search meanwhile; they wait for a moment
        while files are deleted.

        Args:
            keep: the age up to which older versions stay, and with them who was removed since.

        Raises:
            GalleryError: other processes use the gallery without a pause; or the disk refuses.
        """
        before = versions.bytes_in(self.path)
        # Older versions go first too: on a full disk that makes the room to write in.
        deleted, certain = self._delete_older(keep)
        self._changed(lambda: versions.rewrite(self._latest()))
        deleted += self._delete_older(keep)[0]
        return versions.Compaction(before, versions.bytes_in(self.path), deleted, not certain)

    def history(self, limit: int | None = None) -> list[versions.Version]:
        """What happened to the gallery, as far as `compact` kept it; newest first, at most `limit`."""
        with in_use(self.path), explained(self.path):
            return versions.history(self._latest(), limit)

    def restore(self, version: int) -> None:
        """Make an older version the newest, in one commit: who was removed since is back, who was added is gone.

        Ids given since are not given again, and the versions between stay in the history.

        Raises:
            GalleryError: the version is not there (any more).
        """
        older = open_folder(self.path, version)
        self._changed(older.restore)

    def search(
        self,
        features: PartFeatures,
        k: int = 10,
        metric: Metric = "euclidean",
        visibility: Visibility = "common",
        parts: Iterable[Part | str] | None = None,
        filter: str | None = None,  # noqa: A002  (Lance's word, and SQL's)
        calibration: Calibration | None = None,
    ) -> list[list[answers.Match]]:
        """Find the nearest people, or the likeliest, exactly.

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
            calibration: if given, those come first who are likeliest the same person by it, by their distance and the
                parts compared. It is one of the default metric and visibility.

        Returns:
            Per query at most k matches, best first; of equal ones the lower id first.

        Raises:
            GalleryError: the filter is wrong, or parts or dimensions are not the gallery's, or the calibration is of
                another distance or other parts.
            ValueError: k is below 1, or an option is unknown.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if calibration is not None:
            _check_calibration(calibration, metric, visibility, features.features.shape[1])
        with in_use(self.path):
            snapshot = self._latest()
            query = PartFeatures(at_unit_length(features), features.visibility.cpu())
            chosen = chosen_parts(parts, query.features.shape[1])
            self._check_shape(snapshot, tuple(query.features.shape[1:]))
            query = restricted(query, chosen)
            groups = [query[start : start + QUERIES_AT_ONCE] for start in range(0, len(query), QUERIES_AT_ONCE)]
            curves = None if calibration is None else calibration.of_parts(chosen).in_proportion()
            questions = [Question(group, chosen, k, metric, visibility, curves) for group in groups]
            nearest = zip(groups, self._reader.nearest(snapshot, questions, filter), strict=True)
            found = [row for group, best in nearest for row in best.rows(len(group))]
            with explained(self.path):
                return answers.matches(snapshot, found, query.visibility, chosen, visibility)

    def apart(
        self,
        features: PartFeatures,
        parts: Iterable[Part | str] | None = None,
        filter: str | None = None,  # noqa: A002
        limit: int = 100,
    ) -> list[answers.Apart]:
        """List who cannot be compared: people who show none of the parts that a query shows.

        They are those whom `search` leaves out, unless its `visibility` is `"query"` or `"ignore"`.

        Args:
            features: of q queries.
            parts: as in `search`.
            filter: as in `search`.
            limit: people listed per query at most; all are counted.

        Raises:
            GalleryError: as in `search`.
        """
        with in_use(self.path):
            snapshot = self._latest()
            chosen = chosen_parts(parts, features.features.shape[1])
            self._check_shape(snapshot, tuple(features.features.shape[1:]))
            shows = restricted(features, chosen).visibility
            with explained(self.path, filter):
                return answers.apart(snapshot, shows, chosen, filter, limit)

    def fetch(self, ids: Sequence[int]) -> PartFeatures:
        """The stored features of people, float32, in the order asked for.

        Args:
            ids: at least one.

        Raises:
            GalleryError: an id is not in the gallery.
        """
        with in_use(self.path):
            snapshot = self._latest()
            if stored_shape(snapshot.schema) is None:
                raise GalleryError(f"{self.path}: is empty")
            found = list(self._reader.scanned(snapshot, among(ids)))
        place = {number: row for row, number in enumerate(number for block in found for number in block.ids.tolist())}
        self._check_present(ids, place)
        return together(found).people[[place[number] for number in ids]].to(torch.float32)

    def _latest(self) -> LanceDataset:
        """The last commit, as a value of its own: what others commit meanwhile does not change it."""
        if self._version is not None:
            return self._dataset
        with explained(self.path):
            self._dataset = snapshot = self._dataset.checkout_version(self._dataset.latest_version)
        return snapshot

    def _check_writable(self) -> None:
        if self._version is not None:
            raise GalleryError(f"{self.path}: version {self._version} is open for reading only")

    def _check_present(self, ids: Sequence[int], found: Mapping[int, object]) -> None:
        if missing := [number for number in ids if number not in found]:
            raise GalleryError(f"{self.path}: has no person with id {missing[0]}")

    def _check_weights(self, weights: str | Path | None) -> None:
        if weights is not None and (given := fingerprint_of(weights)) != self.fingerprint:
            raise GalleryError(
                f"{self.path}: holds features of the weights {self.fingerprint[:16]}, not of {given[:16]}; "
                "features of different weights cannot be compared"
            )

    def _check_shape(self, snapshot: LanceDataset, given: tuple[int, ...]) -> None:
        if given[0] not in {len(names) for names in LAYOUTS}:
            raise GalleryError(f"{self.path}: a person has {len(PARTS)} parts (or 1, the whole), not {given[0]}")
        if (kept := stored_shape(snapshot.schema)) not in (None, given):
            raise GalleryError(f"{self.path}: holds features of (parts, dimensions) {kept}, not {given}")

    def _commit(
        self, features: PartFeatures, paths: Sequence[str | Path], columns: Mapping[str, pa.Array]
    ) -> list[int]:
        """Append people, after making the columns that are new."""
        import pyarrow as pa

        half = self._dataset.schema.metadata[b"hpnet.dtype"] == b"float16"
        unit = PartFeatures(at_unit_length(features), features.visibility.cpu())
        people = pa.table({**person_columns(unit, paths, half=half), **columns})
        shape = tuple(features.features.shape[1:])

        def change() -> list[int]:
            snapshot = self._latest()
            self._check_shape(snapshot, shape)
            fitted = fitted_to(self.path, snapshot.schema, people)
            if missing := [field for field in fitted.schema if field.name not in snapshot.schema.names]:
                snapshot.add_columns(missing)
                snapshot = self._latest()
            return append(snapshot, fitted)

        return self._changed(change)

    def _changed(self, change: Callable[[], Result], condition: str | None = None) -> Result:
        self._check_writable()
        return retried(self.path, change, condition)

    def _delete_older(self, keep: timedelta) -> tuple[int, bool]:
        self._check_writable()
        with alone(self.path) as certain, explained(self.path):
            return versions.delete_older(self._latest(), keep, leftovers=certain), certain

    def _delete(self, condition: str, written: str | None = None) -> int:
        def change() -> int:
            snapshot = self._latest()
            if not snapshot.count_rows(condition):
                return 0  # Lance would commit a version in which nothing happened
            return int(snapshot.delete(condition)["num_deleted_rows"])

        return self._changed(change, written)


def _check_calibration(calibration: Calibration, metric: Metric, visibility: Visibility, parts: int) -> None:
    if (metric, visibility) != ("euclidean", "common"):
        raise GalleryError(
            f"calibration: is of euclidean distances over common parts, not of {metric} and {visibility}"
        )
    if calibration.parts != parts:
        raise GalleryError(f"calibration: is of {calibration.parts} parts, and the features have {parts}")
