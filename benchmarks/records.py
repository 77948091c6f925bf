"""What `results/` holds: a folder for each training run, as `benchmarks/results.py collect` wrote it.

In: the folder. Out: runs, and their scores by protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from hpnet.evaluation.protocols import PROTOCOLS

Record = Mapping[str, Any]

EXTRAS: Final[tuple[str, ...]] = (
    "first_answers",
    "tracklets",
)  # what scripts beside this one write about a run's features
TRIAL: Final = "trial-"  # begins the names of short runs that were judged on validation identities alone


def file_hash(record: Record) -> str:
    """sha256 of the weights file that a record judges.

    Records name the file's sha256 beside the fingerprint of what features depend on; early ones had the first only.
    """
    weights = record["weights"]
    return str(weights.get("file_sha256", weights["sha256"]))


def features_hash(record: Record) -> str:
    """The fingerprint of what a record's features depend on; early records had the file's sha256 for it."""
    weights = record["weights"]
    return str(weights.get("fingerprint") or weights["sha256"])


@dataclass(frozen=True)
class Run:
    """What is known about one training run.

    Attributes:
        name: of its folder in `results/`.
        recipe: every value of its recipe.
        training: steps, seconds and last losses.
        scores: what `hpnet evaluate` wrote, by file name without `.json`.
        extras: what the scripts of `EXTRAS` wrote, by their names; without those that were not run.
    """

    name: str
    recipe: Record
    training: Record
    scores: Mapping[str, Record]
    extras: Mapping[str, Record]

    def find(self, protocol: str, visibility: str | None = None) -> Record | None:
        """The record of a protocol by its own distance, or by its metric with another visibility; None if absent."""
        row = PROTOCOLS[protocol]
        wanted = (protocol, row.metric, visibility or row.visibility)
        for record in self.scores.values():
            rules = record["protocol"]
            if (rules["name"], rules["metric"], rules["visibility"]) == wanted:
                return record
        return None


@dataclass(frozen=True)
class Results:
    """Everything that the tables are made of.

    Attributes:
        runs: by name.
        demo: what `hpnet demo` wrote; empty if it is not there.
    """

    runs: Mapping[str, Run]
    demo: Record

    @property
    def compact(self) -> Run:
        """The bundled model's run. Raises ValueError where nobody has collected it."""
        if "compact" not in self.runs:
            raise ValueError("results: no run named compact; `benchmarks/results.py collect RUN compact` makes it")
        return self.runs["compact"]

    def variants(self) -> dict[str, dict[int, Run]]:
        """Runs of the ablation by variant and by the seed they were trained with."""
        found: dict[str, dict[int, Run]] = {}
        for name, run in self.runs.items():
            if name.startswith("ablation-"):
                found.setdefault(name.split("-")[1], {})[run.recipe["seed"]] = run
        return found

    def trials(self, series: str) -> list[Run]:
        """The short runs `trial-SERIES-NAME`, the one they are compared with (`trial-SERIES-base`) first."""
        first = f"{TRIAL}{series}-"
        found = (run for name, run in self.runs.items() if name.startswith(first))
        return sorted(found, key=lambda run: not run.name.startswith(f"{first}base"))


def read_results(folder: Path) -> Results:
    """Every run of a folder, and what the demo wrote.

    Raises:
        ValueError: a run without recipe, training record or scores, or files that are not JSON or YAML.
    """
    runs = {path.name: _read_run(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    demo = folder / "demo.json"
    return Results(runs, read_json(demo) if demo.is_file() else {})


def _read_run(folder: Path) -> Run:
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise ValueError(f"{folder}: has no recipe.yaml; `benchmarks/results.py collect` writes one")
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    training = records.pop("training", None)
    extras: dict[str, Record] = {name: records.pop(name) for name in EXTRAS if name in records}
    if training is None or not records:
        raise ValueError(f"{folder}: needs training.json and at least one PROTOCOL.json")
    return Run(folder.name, yaml.safe_load(recipe.read_text(encoding="utf-8")), training, records, extras)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ValueError, naming the file, where it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    return content
