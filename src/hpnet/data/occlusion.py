"""`hpnet occlude`: an occlusion test on real photos that anybody who has the data set can make again.

In: Market-1501, part maps of its query and training photos, a seed. Out: occluded copies of the queries, and the truth
about them: which parts are left, how much of each, and what was pasted from where. `occluders` makes what is pasted,
`truth` reads it all back for evaluation.
"""

from __future__ import annotations

import json as json_format
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from hpnet.console import say, tell_skipped, tracked
from hpnet.data.occluders import KINDS, SMALLEST_PART, Cover, Donors, Kind, map_of, slide
from hpnet.data.photos import PhotoError, read_part_map, read_photo, write_picture
from hpnet.data.reid import Person, data_hash, hold_out, locate, read_split
from hpnet.data.truth import (
    DATA_SET,
    HIDDEN_BELOW,
    MANIFEST,
    SEVERITIES,
    TRUTH,
    VISIBLE_FROM,
    OcclusionError,
    Row,
    part_columns,
    read_manifest,
    read_truth,
    write_truth,
)
from hpnet.files import write_json
from hpnet.parts import BACKGROUND, PARTS

_ATTEMPTS: Final = 200
_QUALITY: Final = 95  # of the JPEG files: the second compression should not be a test of its own


@dataclass(frozen=True, eq=False)
class Occluded:
    """An occluded copy of a photo and the truth about it.

    Attributes:
        picture: of the photo's size.
        cover: what was put before the person.
        hidden_share: of the person's pixels.
        before: (p,) pixels of each part in the photo.
        left: (p,) how many of them are left.
    """

    picture: Image.Image
    cover: Cover
    hidden_share: float
    before: tuple[int, ...]
    left: tuple[int, ...]


def occlude(
    root: Path,
    out: Path,
    *,
    part_maps: Path,
    seed: int = 0,
    kinds: tuple[Kind, ...] = KINDS,
    held_out: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Write occluded copies of Market-1501's query photos, and the truth about what is left to be seen.

    Writes OUT/KIND/SEVERITY/<query's name>, OUT/truth.csv with a row per picture, and OUT/manifest.json, which says
    what decided them. Every query comes once per kind, its severity by turns. Kinds that are there already are kept.

    Args:
        root: folder of Market-1501.
        out: folder for the pictures: a new one, or one that this verb wrote with the same seed, photos and part maps.
        part_maps: folder that mirrors the data set, with maps of the photos in query and in bounding_box_train.
        seed: another seed is another test set.
        kinds: what hides the person, some of person, object and frame: --kinds [person,frame].
        held_out: take the queries from the last so many training identities instead (50 for the protocol
            market1501-validation-occluded, by which things are chosen); people and things are cut from the others.
        overwrite: make kinds anew that are there already, and give up those of another seed or other part maps.
        json: print the manifest as JSON instead of a table.

    Returns:
        0; 1 if a photo or its part map could not be used and was left out.
    """
    if not kinds:
        raise OcclusionError("kinds is empty: choose some of " + ", ".join(KINDS))
    place = locate(DATA_SET, root)
    queries, donors = _people(place, part_maps, held_out)
    made = {**_made(queries, donors, seed), **({"held_out": held_out} if held_out else {})}
    manifest, rows = _begun(out, made, overwrite)
    failures: dict[Path, str] = {}
    for kind in dict.fromkeys(kinds):
        if kind in manifest["kinds"] and not overwrite:
            continue
        rows[kind], left_out = _write_kind(kind, queries, donors, out, seed)
        failures |= left_out
        names = sorted(path.name for path in left_out)
        manifest["kinds"][kind] = {**_summary(rows[kind], out), "left_out": names}
        manifest["kinds"] = {each: manifest["kinds"][each] for each in KINDS if each in manifest["kinds"]}
        write_truth(out / TRUTH, rows)
        manifest["truth_sha256"] = sha256((out / TRUTH).read_bytes()).hexdigest()
        write_json(out / MANIFEST, manifest)
    tell_skipped((failures | donors.failures).values())
    if json:
        say(json_format.dumps({"out": str(out), **manifest}))
    else:
        say(_severity_table(manifest, out))
        say(_part_table(manifest))
    return 1 if failures or donors.failures else 0


def hide(photo: Image.Image, part_map: UInt8[NDArray[Any], "H W"], kind: Kind, severity: int, chance: Random,
         donors: Donors, camera: int | str | None) -> Occluded:  # fmt: skip
    """Hide as much of a person as the severity says.

    Covers are drawn by chance and slid in until they hide a share drawn from the severity's range; one that cannot, or
    jumps beyond the range, gives way to the next. A frame cut takes away what lies beyond it, and the rest is brought
    back to the photo's size.

    Raises:
        OcclusionError: the part map shows nobody, or no cover of many fits.
    """
    body = part_map != BACKGROUND
    if not body.any():
        raise OcclusionError("its part map shows nobody")
    for _ in range(_ATTEMPTS):
        least, most = SEVERITIES[severity]
        cover = donors.cut(kind, chance, camera, body)
        corner = None if cover is None else slide(cover, body, chance.uniform(least, most))
        if cover is None or corner is None:
            continue
        hidden = cover.over(corner, body.shape)
        share = np.count_nonzero(body & hidden) / np.count_nonzero(body)
        if least <= share <= most:
            picture = _cropped(photo, ~hidden) if kind == "frame" else _pasted(photo, cover, corner)
            before, left = (
                tuple(int(np.count_nonzero((part_map == part.label) & seen)) for part in PARTS)
                for seen in (body, ~hidden)
            )
            return Occluded(picture, cover, share, before, left)
    raise OcclusionError(f"no {kind} of {_ATTEMPTS} hides {least:.0%} to {most:.0%} of the person")


def _people(place: Path, part_maps: Path, held_out: int) -> tuple[list[Person], Donors]:
    """Who is occluded, and by whom: never somebody's own pixels."""
    train = read_split(DATA_SET, place, "train")
    if not held_out:
        return read_split(DATA_SET, place, "query"), _donors(train, place, part_maps)
    queries, gallery = hold_out(train, held_out)
    kept_out = {person.path for person in (*queries, *gallery)}
    others = [person for person in train if person.path not in kept_out]
    if held_out < 0 or not queries or not others:
        raise OcclusionError(f"held_out: {held_out} leaves nobody to occlude or nobody to cut from")
    return queries, _donors(others, place, part_maps)


def _donors(people: Sequence[Person], place: Path, part_maps: Path) -> Donors:
    mapped = [person for person in people if map_of(person.path, place, part_maps).is_file()]
    if not mapped:
        folder = map_of(people[0].path, place, part_maps).parent
        raise OcclusionError(f"{folder}: no part map of a training photo; people and things are cut out by them")
    return Donors(mapped, place, part_maps)


def _made(queries: Sequence[Person], donors: Donors, seed: int) -> dict[str, Any]:
    """Everything that decides the pictures but their kinds."""

    def described(people: Sequence[Person]) -> dict[str, Any]:
        maps = [map_of(person.path, donors.root, donors.part_maps) for person in people]
        there = sorted((path.name, path) for path in maps if path.is_file())
        digest = sha256(b"".join(name.encode() + sha256(path.read_bytes()).digest() for name, path in there))
        return {
            "photos": len(people),
            "sha256": data_hash(people, donors.root),
            "part_maps": len(there),
            "part_maps_sha256": digest.hexdigest(),
        }

    return {
        "seed": seed,
        "data_set": DATA_SET,
        "query": described(queries),
        "train": described(donors.people),
        "rule": {
            "severities": {str(level): list(bounds) for level, bounds in SEVERITIES.items()},
            "hidden_below": HIDDEN_BELOW,
            "visible_from": VISIBLE_FROM,
            "smallest_part": SMALLEST_PART,
        },
        "versions": {"hpnet": metadata.version("hpnet"), "pillow": metadata.version("pillow")},
    }


def _begun(out: Path, made: dict[str, Any], overwrite: bool) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """The folder's manifest and truth to go on with; pictures of two seeds must not mix in one folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise OcclusionError(f"{out}: is no empty folder and none that hpnet occlude wrote; give a new one")
    manifest: dict[str, Any] = {**made, "kinds": {}}
    if (out / MANIFEST).is_file():
        earlier = read_manifest(out)
        decisive = ({*earlier, *made}) - {"versions", "kinds", "truth_sha256"}
        if all(earlier.get(key) == made.get(key) for key in decisive):
            return earlier, read_truth(out / TRUTH) if earlier["kinds"] else {}
        if not overwrite:
            raise OcclusionError(
                f"{out}: holds pictures of another seed, other photos or other part maps; give a new folder or "
                "--overwrite true"
            )
        for kind in earlier["kinds"]:
            shutil.rmtree(out / kind, ignore_errors=True)
    write_json(out / MANIFEST, manifest)  # first, so that also a broken-off run is known as this verb's
    return manifest, {}


def _write_kind(
    kind: Kind, queries: Sequence[Person], donors: Donors, out: Path, seed: int
) -> tuple[list[Row], dict[Path, str]]:
    """Write a kind's folder beside its place, then move it there; also tells the photos left out, and why."""
    rows: list[Row] = []
    failures: dict[Path, str] = {}
    severities = _by_turns(kind, queries, seed)
    beside = out / f".{kind}.{os.getpid()}"
    try:
        for person in tracked(queries, f"occluding: {kind}"):
            severity = severities[person.path]
            chance = Random(f"{kind} {seed} {person.path.name}")
            try:
                occluded = _occluded(person, kind, severity, chance, donors)
            except (PhotoError, OcclusionError) as error:
                failures[person.path] = str(error)
                continue
            name = f"{severity}/{person.path.stem}.jpg"
            write_picture(beside / name, occluded.picture, quality=_QUALITY)
            photo = person.path.relative_to(donors.root).as_posix()
            rows.append(_row(f"{kind}/{name}", photo, kind, severity, occluded))
        if not rows:
            raise OcclusionError(f"no query could be used: {next(iter(failures.values()))}")
        shutil.rmtree(out / kind, ignore_errors=True)
        beside.rename(out / kind)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return rows, failures


def _occluded(person: Person, kind: Kind, severity: int, chance: Random, donors: Donors) -> Occluded:
    photo = read_photo(person.path)
    part_map = read_part_map(map_of(person.path, donors.root, donors.part_maps), (photo.shape[1], photo.shape[2]))
    if int(part_map.max()) > len(PARTS):
        raise OcclusionError(
            f"{person.path}: its part map holds {int(part_map.max())}; fold other labels to 0..4 first"
        )
    picture = Image.fromarray(photo.permute(1, 2, 0).numpy())
    try:
        return hide(picture, part_map.numpy(), kind, severity, chance, donors, person.camera)
    except OcclusionError as error:
        raise OcclusionError(f"{person.path}: {error}") from error


def _by_turns(kind: str, queries: Iterable[Person], seed: int) -> dict[Path, int]:
    """A third of the queries for each severity; in an order by chance, since Market-1501's own goes by camera."""
    shuffled = sorted((sha256(f"{kind} {seed} {each.path.name}".encode()).digest(), each.path) for each in queries)
    return {path: 1 + place % len(SEVERITIES) for place, (_, path) in enumerate(shuffled)}


def _pasted(photo: Image.Image, cover: Cover, corner: tuple[int, int]) -> Image.Image:
    picture = photo.copy()
    picture.paste(cover.paint, corner, cover.shape)
    return picture


def _cropped(photo: Image.Image, kept: Bool[NDArray[Any], "H W"]) -> Image.Image:
    # Cropped first: resize(box=) would blend in a little of what lies beyond.
    return photo.crop(Image.fromarray(kept).getbbox()).resize(photo.size, Image.Resampling.BILINEAR)


def _row(name: str, photo: str, kind: Kind, severity: int, occluded: Occluded) -> Row:
    cover = occluded.cover
    return {
        "picture": name,
        "photo": photo,
        "kind": kind,
        "severity": str(severity),
        "hidden_share": f"{occluded.hidden_share:.4f}",
        "occluder": f"{cover.title} {cover.side}",
        "source": cover.source,
        "source_box": " ".join(map(str, cover.box or ())),
        **part_columns(occluded.before, occluded.left, occluded.picture.width * occluded.picture.height),
    }


def _summary(rows: Sequence[Row], out: Path) -> dict[str, Any]:
    """What came out: counts, the measured share, and a fingerprint of the pictures."""
    digests = b"".join(sha256((out / row["picture"]).read_bytes()).digest() for row in rows)
    severities = {}
    for level in map(str, SEVERITIES):
        shares = [float(row["hidden_share"]) for row in rows if row["severity"] == level]
        mean = round(sum(shares) / max(1, len(shares)), 4)
        severities[level] = {"pictures": len(shares), "hidden_share": mean,
                             "least": min(shares, default=0.0), "most": max(shares, default=0.0)}  # fmt: skip
    after = {part.name.lower(): [row[f"{part.name.lower()}_after"] for row in rows] for part in PARTS}
    return {
        "pictures": len(rows),
        "pictures_sha256": sha256(digests).hexdigest(),
        "severities": severities,
        "parts": {name: {"visible": seen.count("1"), "hidden": seen.count("0"), "unsure": seen.count("")}
                  for name, seen in after.items()},
    }  # fmt: skip


def _severity_table(manifest: Mapping[str, Any], out: Path) -> Table:
    table = Table("kind", "severity", "pictures", "hidden share of the person %", title=f"occluded queries in {out}")
    for kind, entry in manifest["kinds"].items():
        for level, found in entry["severities"].items():
            mean, least, most = (100 * found[name] for name in ("hidden_share", "least", "most"))
            table.add_row(kind, level, f"{found['pictures']:,}", f"{mean:.1f} ({least:.1f} to {most:.1f})")
    return table


def _part_table(manifest: Mapping[str, Any]) -> Table:
    table = Table("kind", "part", "visible", "unsure", "hidden")
    for kind, entry in manifest["kinds"].items():
        for part in PARTS:
            found = entry["parts"][part.name.lower()]
            table.add_row(kind, part.title, *(f"{found[name]:,}" for name in ("visible", "unsure", "hidden")))
    return table
