"""What a template of a track is worth against its photos by themselves: whole people, and people behind walls.

In: the folder in which `hpnet evaluate --protocol market1501` cached its features, and Market-1501. Out: a JSON file.
A track is what one camera saw of one person.

    python benchmarks/tracklets.py RUN/evaluate --root data/Market-1501-v15.09.15
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import torch
from first_answers import cached
from jaxtyping import UInt8
from jsonargparse import auto_cli
from torch import Generator, Tensor

from hpnet.console import remark
from hpnet.data.photos import read_photo
from hpnet.data.reid import DISTRACTOR, JUNK, Person, read_split
from hpnet.data.sampler import generator_for
from hpnet.embed import Embedder
from hpnet.evaluation.evaluate import Side, judge
from hpnet.evaluation.protocols import find_protocol
from hpnet.files import write_json
from hpnet.parts import PartFeatures
from hpnet.tracklets import template

WALLED: Final = 250  # identities
VIEWS: Final = (3, 6)  # fewest and most of a walled track: it needs its upper and its lower half
HIDDEN: Final = ((0.0, 0.5), (0.45, 1.0))  # from, to, in heights of the photo: what the wall hides, by turns


def main(features: Path, *, root: Path, weights: str = "compact", seed: int = 0, out: Path | None = None) -> int:
    """Compare galleries of photos, of one photo of each track, and of a template of each track.

    Args:
        features: folder with the cached features of the weights, `features-*.npz`.
        root: folder of Market-1501.
        weights: by name or path; they see the people behind walls.
        seed: draws the identities, the walls, and the photo that stands for its track.
        out: JSON file to write; by default tracklets.json beside the features.
    """
    sides = [read_split("market1501", root, split) for split in ("query", "gallery")]
    sides = [[person for person in people if person.identity != JUNK] for people in sides]
    seen = [cached(features, [person.path.relative_to(root).as_posix() for person in people]) for people in sides]
    embedder = Embedder(weights)
    if {fingerprint for _, fingerprint in seen} != {embedder.fingerprint}:
        raise ValueError(f"{features}: its features are not those of {weights}")
    asked, photos = (Side(people, each) for people, (each, _) in zip(sides, seen, strict=True))
    record = {
        "protocol": "market1501",
        "seed": seed,
        "weights": {"fingerprint": embedder.fingerprint},
        "whole": compared(asked, photos, seed),
        "walled": compared(*_walled(asked, photos, embedder, seed), seed),
    }
    place = out or features / "tracklets.json"
    write_json(place, record)
    remark(f"written: {place}")
    return 0


def compared(query: Side, photos: Side, seed: int) -> dict[str, Any]:
    """R1 and mAP, in percent, of the three galleries that can be made of the same photos."""
    tracks = tracks_of(photos.people)
    chance = generator_for(seed, "one photo")
    one = [rows[int(torch.randint(len(rows), (), generator=chance))] for rows in tracks]
    galleries = {
        "photos": photos,
        "one photo of each track": Side([photos.people[row] for row in one], photos.features[one]),
        "templates": Side(
            [photos.people[rows[0]] for rows in tracks],
            PartFeatures.concatenate([template(photos.features[rows]) for rows in tracks]),
        ),
    }
    row = find_protocol("market1501")
    scores = {name: judge(row, query, gallery).mean for name, gallery in galleries.items()}
    return {
        "queries": len(query.people),
        "tracks": len(tracks),
        "galleries": {
            name: {"size": len(galleries[name].people), "R1": 100 * each.cmc[1], "mAP": 100 * each.mean_ap}
            for name, each in scores.items()
        },
    }


def tracks_of(people: Sequence[Person]) -> list[list[int]]:
    """Rows of each track, in the order of their names; nobody knows whose tracks distractors are on: one photo each."""

    def track(row: int) -> tuple[str, str, int]:
        person = people[row]
        return str(person.identity), str(person.camera), row if person.identity == DISTRACTOR else -1

    return [list(rows) for _, rows in groupby(sorted(range(len(people)), key=track), key=track)]


def _walled(query: Side, photos: Side, embedder: Embedder, seed: int) -> tuple[Side, Side]:
    """Some people's queries, and their tracks seen again behind walls that hide one half and the other by turns."""
    known = [rows for rows in tracks_of(photos.people) if photos.people[rows[0]].identity != DISTRACTOR]
    long = [rows[: VIEWS[1]] for rows in known if len(rows) >= VIEWS[0]]
    identities = sorted({photos.people[rows[0]].identity for rows in long}, key=str)
    chance = generator_for(seed, "walls")
    chosen = {identities[row] for row in torch.randperm(len(identities), generator=chance)[:WALLED].tolist()}
    tracks = [rows for rows in long if photos.people[rows[0]].identity in chosen]
    people = [photos.people[row] for rows in tracks for row in rows]
    turns = [turn for rows in tracks for turn in range(len(rows))]
    size = embedder.model.config.size
    views = [walled(read_photo(p.path, size), turn, chance) for p, turn in zip(people, turns, strict=True)]
    asking = [row for row, person in enumerate(query.people) if person.identity in chosen]
    return (
        Side([query.people[row] for row in asking], query.features[asking]),
        Side(people, embedder(torch.stack(views))),
    )


def walled(photo: UInt8[Tensor, "3 H W"], turn: int, chance: Generator) -> UInt8[Tensor, "3 H W"]:
    """The photo with a rough wall of some colour before its upper half, or at odd turns before its legs."""
    start, end = (round(share * photo.shape[1]) for share in HIDDEN[turn % 2])
    colour = torch.randint(40, 200, (3, 1, 1), generator=chance)
    wall = colour + torch.randint(0, 15, photo.shape, generator=chance)
    photo = photo.clone()
    photo[:, start:end] = wall[:, start:end].to(torch.uint8)
    return photo


if __name__ == "__main__":
    try:
        sys.exit(auto_cli(main, as_positional=True))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
