"""Label the body parts in a folder of photos with a teacher: `hpnet label`.

In: a teacher's weights and a folder. Out: a folder of part maps that mirrors it, as `hpnet train` wants them, with
`labels.csv` (a row per photo: how certain, which parts, other people), `manifest.json`, and a sheet to look at.
"""

from __future__ import annotations

import csv
import json as json_format
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import Tensor

from hpnet import visualize
from hpnet import weights as weights_file
from hpnet.console import remark, say, tell_skipped, tracked
from hpnet.data.parsing import SECOND_HEAD_MIN, connected
from hpnet.data.photos import (
    Failure,
    PhotoError,
    find_photos,
    read_part_map,
    read_photo,
    read_photos,
    read_size,
    write_part_map,
    write_picture,
)
from hpnet.embed import usable_device
from hpnet.files import sha256_of, write_json, written_whole
from hpnet.parts import BACKGROUND, PARTS, Part, visible_parts
from hpnet.training.teacher import Teacher, load_teacher, probabilities

OTHERS_MIN: Final = 0.1  # of the kept person's pixels; fewer pixels elsewhere are a speck, not a person
_IN_LINE: Final = (
    0.25  # a piece belongs to the person if its middle lies in the person's width, so much wider each side
)
_SHOWN: Final = 24  # photos at either end of the sheet
_COLUMNS: Final = ("photo", "certainty", *(part.name.lower() for part in PARTS), "others")

Others = Literal["", "apart", "touching"]


class LabellingError(ValueError):
    """A folder of labels that cannot be used; the text names it and what to do."""


@dataclass(frozen=True)
class Label:
    """What is known of one photo's part map.

    Attributes:
        photo: path below the folder of photos.
        certainty: mean probability of the chosen part over the person's pixels (over all, where nobody was found).
        visible: which parts the map shows.
        others: whether there are more people: `apart` from the kept one, whose pixels became background, or `touching`.
    """

    photo: str
    certainty: float
    visible: tuple[bool, ...]
    others: Others

    def row(self) -> list[str]:
        """As a row of `labels.csv`."""
        return [self.photo, f"{self.certainty:.4f}", *(str(int(each)) for each in self.visible), self.others]


def label(
    weights: str,
    photos: Path,
    out: Path,
    *,
    overlay: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    batch_size: int = 32,
    json: bool = False,
) -> int:
    """Write part maps for a folder of photos of people. What is there already is kept, so it can be stopped and go on.

    Args:
        weights: a teacher's weights file (hpnet teach), or the name of bundled ones: teacher.
        photos: folder of photos, each of one person (others in it are recognised and left out).
        out: folder for the maps; it mirrors the photos' folder.
        overlay: also write the photos with their parts coloured, below OUT/overlays.
        overwrite: label again what is there already.
        device: cpu, cuda; the default takes a GPU if there is one.
        batch_size: photos that go through the network together.
        json: print the manifest as JSON instead of a table.

    Returns:
        0, or 1 if a photo could not be read.
    """
    if batch_size < 1:
        raise LabellingError(f"batch_size must be at least 1, not {batch_size}")
    found = find_photos(photos)
    root = photos if photos.is_dir() else photos.parent
    _check_names(found, root)
    model, _ = load_teacher(weights)
    model.to(usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    sha256 = sha256_of(weights_file.locate(weights))
    done = _labels_begun(out, sha256, overwrite=overwrite)
    remaining = [path for path in found if _name(path, root) not in done]
    if len(remaining) < len(found):
        remark(f"{len(found) - len(remaining)} of {len(found)} photos are labelled already")
    failures: list[Failure] = []
    with (out / "labels.csv").open("a", newline="", encoding="utf-8") as file:
        for piece in _labelled(model, remaining, root, out, failures, batch_size, overlay=overlay):
            csv.writer(file).writerows(each.row() for each in piece)
            file.flush()
            done |= {each.photo: each for each in piece}
    labels = [done[name] for path in found if (name := _name(path, root)) in done]
    manifest = _manifest(labels, sha256, failures)
    write_json(out / "manifest.json", manifest)
    if labels:
        _write_sheet(labels, root, out)
    tell_skipped(failure.reason for failure in failures)
    say(json_format.dumps(manifest) if json else _table(manifest))
    return 1 if failures else 0


def middle_person(part_map: UInt8[NDArray[Any], "H W"]) -> tuple[UInt8[NDArray[Any], "H W"], Others]:
    """Keep the person in the middle of a part map, and say whether there are others.

    The person is the connected piece of foreground that weighs most, a pixel weighing the less the farther it is from
    the middle column. Other pieces in line with it belong to it (a shin behind a bag), unless both have a head. The
    rest becomes background; from a tenth of the person's size on it is called another person. Two pieces of head in
    one person mean that two people touch, which nothing here can part.
    """
    pieces = connected(part_map != BACKGROUND)
    count = int(pieces.max(initial=0))
    if count == 0:
        return part_map, ""
    width = part_map.shape[1]
    weight = 1 - np.abs(np.arange(width) + 0.5 - width / 2) / (width / 2 + 1)
    weights = np.bincount(pieces.ravel(), np.broadcast_to(weight, pieces.shape).ravel(), count + 1)
    main = int(weights[1:].argmax()) + 1
    with_head = set(np.unique(pieces[part_map == Part.HEAD.label]).tolist())
    kept = np.isin(
        pieces, [main, *(n for n in range(1, count + 1) if n != main and _belongs(pieces, n, main, with_head))]
    )
    person = np.where(kept, part_map, np.uint8(BACKGROUND))
    left_out = np.count_nonzero((pieces > 0) & ~kept)
    if left_out >= OTHERS_MIN * np.count_nonzero(kept):
        return person, "apart"
    heads = np.sort(np.bincount(connected(person == Part.HEAD.label).ravel())[1:])
    return person, "touching" if len(heads) > 1 and heads[-2] >= SECOND_HEAD_MIN * heads[-1] else ""


def _belongs(pieces: NDArray[Any], number: int, main: int, with_head: set[int]) -> bool:
    if number in with_head and main in with_head:
        return False
    columns, own = (np.flatnonzero((pieces == each).any(0)) for each in (number, main))
    slack = _IN_LINE * (own[-1] + 1 - own[0])
    return bool(own[0] - slack <= (columns[0] + columns[-1]) / 2 <= own[-1] + slack)


def _labelled(
    model: Teacher,
    paths: Sequence[Path],
    root: Path,
    out: Path,
    failures: list[Failure],
    batch_size: int,
    *,
    overlay: bool,
) -> Iterator[list[Label]]:
    """Label photo after photo; a piece comes out when all its part maps are on disk."""
    stream = zip(paths, tracked(read_photos(paths, model.config.size), "labelling", len(paths)), strict=True)
    with ThreadPoolExecutor(2) as pool:
        while piece := list(islice(stream, batch_size)):
            failures += [photo for _, photo in piece if isinstance(photo, Failure)]
            read = [(path, photo) for path, photo in piece if not isinstance(photo, Failure)]
            if not read:
                continue
            sizes = [read_size(path) for path, _ in read]
            maps = _part_maps(model, torch.stack([photo for _, photo in read]), sizes)

            def write(path: Path, part_map: Tensor, certain: Tensor) -> Label:
                person, others = middle_person(part_map.numpy())
                name, kept = _name(path, root), torch.from_numpy(person)
                write_part_map((out / name).with_suffix(".png"), kept)
                if overlay:
                    _write_overlay(out / "overlays" / name, path, kept)
                chosen = certain[kept > 0] if bool(kept.any()) else certain
                return Label(name, float(chosen.mean()), tuple(visible_parts(kept).tolist()), others)

            yield list(pool.map(write, (path for path, _ in read), *zip(*maps, strict=True)))


def _part_maps(
    model: Teacher, photos: UInt8[Tensor, "b 3 H W"], sizes: Sequence[tuple[int, int]]
) -> list[tuple[UInt8[Tensor, "_ _"], Float[Tensor, "_ _"]]]:
    """Part maps at the photos' own sizes, and the probability of what each pixel is said to be."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(photos.to(device).float() / 255)
        maps: dict[int, tuple[Tensor, Tensor]] = {}
        for size in set(sizes):
            rows = [row for row, each in enumerate(sizes) if each == size]
            certain, part = probabilities(output._make(each[rows] for each in output), size).max(1)
            pairs = zip(part.to("cpu", torch.uint8).clone(), certain.cpu().clone(), strict=True)
            maps |= dict(zip(rows, pairs, strict=True))
    return [maps[row] for row in range(len(sizes))]


def _labels_begun(out: Path, sha256: str, *, overwrite: bool) -> dict[str, Label]:
    """The labels that a folder has from before, by photo; the folder is made ready for more."""
    manifest, rows = out / "manifest.json", out / "labels.csv"
    earlier = [] if overwrite else _earlier(manifest, rows, sha256, out)
    kept = [each for each in earlier if (out / each.photo).with_suffix(".png").is_file()]
    write_json(manifest, {"weights": sha256})  # first, so that a broken-off run says what it labelled with
    with written_whole(rows) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *(each.row() for each in kept)])
    return {each.photo: each for each in kept}


def _earlier(manifest: Path, rows: Path, sha256: str, out: Path) -> list[Label]:
    if not manifest.is_file() or not rows.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise LabellingError(
                f"{out}: holds something else; choose another folder, or write over it with --overwrite"
            )
        return []
    try:
        before = json_format.loads(manifest.read_text(encoding="utf-8"))["weights"]
    except (KeyError, TypeError, ValueError) as error:
        raise LabellingError(f"{manifest}: damaged; label anew with --overwrite") from error
    if before != sha256:
        raise LabellingError(
            f"{out}: was labelled with other weights; choose another folder, or label anew: --overwrite"
        )
    with rows.open(newline="", encoding="utf-8") as file:
        # A row that a stop tore apart is left out; its photo is labelled again.
        return [each for row in list(csv.reader(file))[1:] if (each := _label_of(row)) is not None]


def _label_of(row: list[str]) -> Label | None:
    if len(row) != len(_COLUMNS) or row[-1] not in ("", "apart", "touching"):
        return None
    try:
        return Label(row[0], float(row[1]), tuple(bool(int(each)) for each in row[2:-1]), row[-1])  # type: ignore[arg-type]
    except ValueError:
        return None


def _check_names(paths: Sequence[Path], root: Path) -> None:
    """Two photos must not share one map."""
    twice = [
        name for name, count in Counter(path.relative_to(root).with_suffix("") for path in paths).items() if count > 1
    ]
    if twice:
        raise LabellingError(
            f"{root}: {len(twice)} photos differ in their suffix alone and would share a map, {twice[0]} first"
        )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _write_overlay(target: Path, photo: Path, part_map: UInt8[Tensor, "H W"]) -> None:
    coloured = visualize.overlay(read_photo(photo), part_map)
    write_picture(target.with_suffix(".jpg"), Image.fromarray(coloured.permute(1, 2, 0).numpy()))


def _manifest(labels: Sequence[Label], sha256: str, failures: Sequence[Failure]) -> dict[str, Any]:
    shown = torch.tensor([each.visible for each in labels], dtype=torch.float64).view(-1, len(PARTS))
    shares = shown.mean(0).tolist() if labels else [0.0] * len(PARTS)
    return {
        "weights": sha256,
        "maps": len(labels),
        "unreadable": [failure.reason for failure in failures],
        "visible": {part.name: round(share, 4) for part, share in zip(PARTS, shares, strict=True)},
        "others_apart": sum(each.others == "apart" for each in labels),
        "others_touching": sum(each.others == "touching" for each in labels),
        "certainty": round(sum(each.certainty for each in labels) / max(1, len(labels)), 4),
    }


def _write_sheet(labels: Sequence[Label], root: Path, out: Path) -> None:
    """The least certain photos and the most certain ones, each beside its part map."""
    ranked = sorted(labels, key=lambda each: each.certainty)
    ends = ranked if len(ranked) <= 2 * _SHOWN else [*ranked[:_SHOWN], *ranked[-_SHOWN:]]
    shown: list[Tensor] = []
    captions: list[str] = []
    for each in ends:
        try:
            photo = read_photo(root / each.photo)
            part_map = read_part_map((out / each.photo).with_suffix(".png"))
        except PhotoError:
            continue  # taken away since it was labelled
        shown += [photo, visualize.overlay(photo, part_map, 0.6)]
        captions += [f"{each.certainty:.2f} {each.others}", Path(each.photo).stem]
    if shown:
        write_picture(out / "sheet.jpg", visualize.contact_sheet(shown, columns=16, captions=captions, size=(192, 96)))


def _table(manifest: dict[str, Any]) -> Table:
    table = Table(title=f"{manifest['maps']} part maps", show_header=False)
    for part, share in manifest["visible"].items():
        table.add_row(f"{part.lower().replace('_', ' ')} visible", f"{100 * share:.1f} %")
    table.add_row("with other people apart", str(manifest["others_apart"]))
    table.add_row("with other people touching", str(manifest["others_touching"]))
    table.add_row("mean certainty", f"{manifest['certainty']:.3f}")
    return table
