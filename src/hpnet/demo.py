"""`hpnet demo`: the whole story on drawn people, in a few minutes on two cores.

In: nothing. Out: a folder with a drawn data set, an HPNet and a baseline trained on it, a gallery, a table that
compares them on half-hidden queries, and an HTML report of what was found. All of it goes through the public doors.
"""

from __future__ import annotations

import json as json_format
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from hpnet.console import remark, say
from hpnet.data.reid import JUNK, Person, read_split
from hpnet.data.synthetic import SyntheticConfig, write_market1501
from hpnet.data.transforms import Augmentation
from hpnet.embed import Embedder
from hpnet.evaluation.evaluate import Judgement, Side, judge
from hpnet.evaluation.metrics import percent
from hpnet.evaluation.protocols import find_protocol
from hpnet.files import write_json
from hpnet.gallery import Gallery, Match
from hpnet.model import ModelConfig
from hpnet.report import Answer, report_query
from hpnet.training.recipe import Recipe
from hpnet.training.train import fit, setup
from hpnet.visualize import ReportTable, write_report

# About four minutes of two cores.
DOLLS: Final = SyntheticConfig(identities=120, test_identities=40, cameras=4, shots=2, distractors=40, size=(128, 64))
MODEL: Final = ModelConfig(
    trunk="resnet18", branch="compact", parsing_channels=64, size=(96, 48), stride=8, threshold=0.4
)
_COLUMNS: Final = ("R1", "R3", "R5", "R10", "mAP")
_QUERIES_SHOWN: Final = 12
_ANSWERS_SHOWN: Final = 8


@dataclass(frozen=True)
class _Row:
    """A line of the demo's table."""

    title: str
    judgement: Judgement


def demo(
    out: Path = Path("out/demo"), *, epochs: int = 12, seed: int = 0, overwrite: bool = False, json: bool = False
) -> int:
    """Draw people, train on them, find half-hidden ones again, and show it.

    Args:
        out: folder for everything that is made.
        epochs: passes over the drawn identities, for each of the two models.
        seed: of the drawn world and of training.
        overwrite: start anew in a folder that holds an earlier demo.
        json: print the scores as JSON.
    """
    if overwrite and (out / "scores.json").is_file():
        shutil.rmtree(out)
    console = Console(stderr=True)
    console.rule("1/4 people are drawn")
    dolls = out / "dolls"
    write_market1501(dolls, replace(DOLLS, seed=seed))
    console.rule("2/4 HPNet learns to find and describe parts")
    hpnet = _trained(dolls, out / "hpnet", MODEL, epochs, seed)
    console.rule("3/4 the baseline learns to describe whole pictures")
    baseline = _trained(dolls, out / "baseline", replace(MODEL, baseline=True), epochs, seed)
    console.rule("4/4 half-hidden people are searched")
    query = read_split("market1501", dolls, "query")
    people = [person for person in read_split("market1501", dolls, "gallery") if person.identity != JUNK]
    rows = _compared(hpnet, baseline, query, people)
    found = _searched(hpnet, out / "gallery", query, people)
    record = {row.title: percent(row.judgement.mean) for row in rows}
    write_json(out / "scores.json", {"scores": record, "queries": len(query), "gallery": len(people), "seed": seed})
    _write_report(out / "report.html", hpnet, rows, query, found)
    _print(rows, record, out, json=json)
    return 0


def _trained(dolls: Path, out: Path, model: ModelConfig, epochs: int, seed: int) -> Embedder:
    recipe = Recipe(
        reid=dolls,
        part_maps=dolls / "part_maps",
        out=out,
        model=model,
        augmentation=Augmentation(flip=0.5),
        epochs=epochs,
        identities_per_batch=8,
        optimiser="adam",
        learning_rate=0.003,
        new_layer_rate=0.003,
        schedule="cosine",
        warmup_epochs=1.0,
        weight_parsing=3.0,  # identities are learnt from what the parts show, so parts come first
        seed=seed,
    )
    fit(setup(recipe))
    return Embedder(out / "weights.safetensors", batch_size=64)


def _compared(hpnet: Embedder, baseline: Embedder, query: Sequence[Person], people: Sequence[Person]) -> list[_Row]:
    """The same queries by parts seen in both, by all parts whatever is seen, and by the baseline's whole pictures."""
    protocol = find_protocol("market1501")
    sides = [Side(each, hpnet([person.path for person in each])) for each in (query, people)]
    whole = [Side(each, baseline([person.path for person in each])) for each in (query, people)]
    return [
        _Row("HPNet: parts seen in both", judge(protocol, *sides)),
        _Row("HPNet: visibility ignored", judge(replace(protocol, visibility="ignore"), *sides)),
        _Row("baseline: whole pictures", judge(protocol, *whole)),
    ]


def _searched(
    embedder: Embedder, folder: Path, query: Sequence[Person], people: Sequence[Person]
) -> list[tuple[Person, list[Match]]]:
    """Some queries, evenly spread, searched in a gallery on disk; the query's own camera does not answer."""
    gallery = Gallery.create(folder, embedder.fingerprint)
    gallery.add(
        embedder([person.path for person in people]),
        [str(person.path) for person in people],
        cameras=[person.camera for person in people],
        identities=[person.identity for person in people],
    )
    shown = query[:: max(1, len(query) // _QUERIES_SHOWN)][:_QUERIES_SHOWN]
    return [
        (person, gallery.search(embedder(person.path), k=_ANSWERS_SHOWN, filter=f"camera != {person.camera}")[0])
        for person in shown
    ]


def _write_report(
    path: Path,
    embedder: Embedder,
    rows: Sequence[_Row],
    query: Sequence[Person],
    found: Sequence[tuple[Person, list[Match]]],
) -> None:
    queries = [
        report_query(
            embedder,
            person.path,
            [
                Answer(Path(m.path), f"{m.identity}, camera {m.camera}", m.distance, m.identity == person.identity)
                for m in matches
            ],
            title=f"{person.identity}, camera {person.camera}",
        )
        for person, matches in found
    ]
    table = ReportTable(
        f"{len(query)} half-hidden queries", ("percent", *_COLUMNS), _cells(rows), "Drawn people; see docs/demo.md.", 0
    )
    write_report(path, "hpnet: half-hidden people, found again", queries, [table])


def _cells(rows: Sequence[_Row]) -> list[list[str]]:
    values = [(row.title, percent(row.judgement.mean)) for row in rows]
    return [[title, *(f"{scores[name]:.1f}" for name in _COLUMNS)] for title, scores in values]


def _print(rows: Sequence[_Row], record: dict[str, Any], out: Path, *, json: bool) -> None:
    if json:
        say(json_format.dumps(record))
        return
    table = Table(title="half-hidden queries, percent")
    table.add_column("")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for cells in _cells(rows):
        table.add_row(*cells)
    say(table)
    remark(f"look at {out / 'report.html'}")
