"""What each change of a recipe did, as Markdown: short runs, judged on validation identities.

In: `records.Results`. Out: a block for each series of runs `trial-SERIES-NAME`. One table compares runs of equal length
that began at the same weights; runs of one recipe and several seeds share a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import yaml
from records import TRIAL, Record, Results, Run
from result_tables import seeds_cell, table

from hpnet.training.recipe import Recipe

TESTS: Final = {"market1501-validation": "R1 / mAP", "market1501-validation-occluded": "occluded: R1 / mAP"}
HIDDEN: Final = {"all": "hidden parts found hidden", "torso": "hidden torsos"}
_DEFAULT: Final = Recipe(reid=Path("data"), part_maps=Path("data"), out=Path("runs"))
_PLACES: Final = ("out", "seed")  # do not make another recipe


def trials(series: str) -> Callable[[Results], str]:
    """A block: scores of every change, and how many hidden parts the network calls hidden, in percent."""

    def block(results: Results) -> str:
        runs = results.trials(series)
        by_change: dict[str, list[Run]] = {}
        for run in runs:
            by_change.setdefault(change_of(run.recipe, runs[0].recipe), []).append(run)
        rows = ([f"`{change}`" if change else "none", *_cells(same)] for change, same in by_change.items())
        return table(("change", *TESTS.values(), *HIDDEN.values()), rows)

    return block


def chosen(results: Results) -> str:
    """A block: the bundled weights and those before them, by what they were chosen by."""
    found = [(name, run) for name, run in results.runs.items() if not name.startswith(TRIAL)]
    judged = [(name, run) for name, run in found if all(run.find(test) for test in TESTS)]
    rows = ([f"`{name}`", f"{run.training['steps']:,}", *_cells([run])] for name, run in judged)
    return table(("weights", "steps of this run", *TESTS.values(), *HIDDEN.values()), rows)


def _cells(runs: list[Run]) -> list[str]:
    found = {test: {run.recipe["seed"]: run.find(test) for run in runs} for test in TESTS}
    *_, occluded = found.values()
    visible = {seed: record["occlusion"]["visibility"] if record else {} for seed, record in occluded.items()}
    return [
        *(" / ".join(_seeds(_scores(records), name) for name in ("R1", "mAP")) for records in found.values()),
        *(_seeds({seed: parts.get(part, {}) for seed, parts in visible.items()}, "hidden_recall") for part in HIDDEN),
    ]


def _scores(records: Mapping[int, Record | None]) -> dict[int, Record]:
    return {seed: record["scores"] if record else {} for seed, record in records.items()}


def _seeds(records: Mapping[int, Record], name: str) -> str:
    return seeds_cell({seed: record[name] for seed, record in records.items() if record.get(name) is not None})


def change_of(recipe: Record, base: Record) -> str:
    """What a recipe changes of another one: `key: value, ...`; where it is written and its seed do not count."""
    # Recipes hold every key there was when they ran; one that came later had the default's effect.
    ours, theirs = ({**_flat(yaml.safe_load(_DEFAULT.as_text())), **_flat(each)} for each in (recipe, base))
    changed = {key: value for key, value in ours.items() if value != theirs[key] and key not in _PLACES}
    return ", ".join(
        f"{key}: {str(value).lower() if value in (True, False) else value}" for key, value in changed.items()
    )


def _flat(recipe: Record, before: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in recipe.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


BLOCKS: Final = {
    **{f"trials-{series}": trials(series) for series in ("further", "strong", "labels")},
    "chosen": chosen,
}
