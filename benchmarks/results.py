"""Result files into the tables of the pages, so that no number is written by hand: `make results`.

In: run folders that `hpnet train` and `hpnet evaluate` left (`collect`), or `results/` (`write`, `check`). Out:
`results/RUN/`, free of anybody's paths, and pages whose blocks between `<!-- results: NAME -->` and `<!-- end -->` are
what the files say.

    python benchmarks/results.py collect RUN NAME [--scores FOLDER]
    python benchmarks/results.py write | check
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml
from jsonargparse import auto_cli
from records import EXTRAS, Results, features_hash, file_hash, read_json, read_results
from result_tables import BLOCKS as RESULT_BLOCKS
from trial_tables import BLOCKS as TRIAL_BLOCKS

from hpnet.console import remark, say
from hpnet.files import sha256_of, write_json, written_whole

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "results"
PAGES: Final = (
    "README.md",
    "docs/label.md",
    "docs/results.md",
    "docs/search.md",
    "docs/train.md",
    "src/hpnet/pretrained/README.md",
)
BLOCKS: Final = {**RESULT_BLOCKS, **TRIAL_BLOCKS}
LAST_STEPS: Final = 20  # a single step's loss says little
_DATA_KEYS: Final = ("reid", "part_maps", "human_root", "initial")
_BLOCK: Final = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_MARKER: Final = re.compile(r"<!-- (results: [\w-]+|end) -->")


def collect(run: Path, name: str, *, scores: Path | None = None, into: Path = RESULTS) -> None:
    """Copy a run's recipe, scores and a summary of its log into results/NAME, and rebuild the pages' tables after it.

    Args:
        run: run folder of `hpnet train`.
        name: of the folder in results/: `compact`, `ablation-VARIANT-seedN`, or `trial-SERIES-NAME`.
        scores: folder with PROTOCOL/scores.json; by default RUN/evaluate. For weights that were converted afterwards,
            such as the bundled ones.
        into: folder of results.
    """
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise ValueError(f"name {name!r}: write small letters, digits, - and _")
    records = dict(_records(scores or run / "evaluate"))
    judged = {name: record for name, (_, record) in records.items() if name not in EXTRAS}
    if len({features_hash(record) for _, record in records.values()}) != 1 or not judged:
        raise ValueError(f"{scores or run / 'evaluate'}: needs scores of one weights file, not of none or several")
    files = {file_hash(record) for record in judged.values()}
    if scores is None and files != {sha256_of(run / "weights.safetensors")}:
        raise ValueError(f"{run}: the scores are not those of its weights.safetensors; evaluate again")
    recipe = documented(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")), name)
    training = summary((run / "log.jsonl").read_text(encoding="utf-8"))
    folder = into / name
    shutil.rmtree(folder, ignore_errors=True)
    for file, (path, _) in records.items():
        with written_whole(folder / f"{file}.json") as beside:
            shutil.copyfile(path, beside)
    with written_whole(folder / "recipe.yaml") as beside:
        beside.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    write_json(folder / "training.json", training)
    remark(f"{len(records)} files of scores in {folder}; now `make results`")


def _records(folder: Path) -> Iterator[tuple[str, tuple[Path, dict[str, Any]]]]:
    """Name in results/, file and content of each record of an evaluation folder."""
    named = {path.parent.name: path for path in sorted(folder.glob("*/scores.json"))}
    extras = {name: folder / f"{name}.json" for name in EXTRAS}
    for name, path in {**named, **{name: path for name, path in extras.items() if path.is_file()}}.items():
        content = read_json(path)
        if found := next(_absolute(content), None):
            raise ValueError(f"{path}: {found} is a path of this machine and must not be published")
        yield name, (path, content)


def _absolute(value: Any, key: str = "") -> Iterator[str]:
    """Keys whose values are absolute paths."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _absolute(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for each in value:
            yield from _absolute(each, key)
    elif isinstance(value, str) and value.startswith(("/", "~")):
        yield key


def documented(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe with every path where the documentation has it: data/..., runs/..."""
    changed = {**recipe, "out": f"runs/{name}"}
    for key in _DATA_KEYS:
        if recipe.get(key):
            place = PurePosixPath(recipe[key])
            in_run = place.name in ("weights.safetensors", "checkpoint.pt")  # of an earlier run, named by its folder
            changed[key] = f"runs/{place.parent.name}/{place.name}" if in_run else f"data/{place.name}"
    if found := next(_absolute(changed), None):
        raise ValueError(f"recipe: {found} is a path of this machine and must not be published")
    return changed


def summary(log: str) -> dict[str, Any]:
    """How long a run took and where its losses ended, from its log.jsonl."""
    rows = [json.loads(line) for line in log.splitlines() if line.strip()]
    if not rows:
        raise ValueError("log.jsonl is empty: no step was made")
    last = rows[-LAST_STEPS:]
    losses = [key for key in rows[-1] if key not in ("step", "epoch", "rate", "seconds", "wait")]
    return {
        "steps": rows[-1]["step"],
        "epochs": rows[-1]["epoch"],
        "seconds_per_step": round(statistics.median(row["seconds"] for row in rows), 3),
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "waiting_percent": round(100 * sum(row["wait"] for row in rows) / sum(row["seconds"] for row in rows), 2),
        "averaged_over_last_steps": len(last),
        "last_losses": {name: round(statistics.fmean(row[name] for row in last), 4) for name in losses},
    }


def rebuilt(page: str, results: Results, name: str = "page") -> str:
    """The page with every block as the results have it.

    Raises:
        ValueError: a block that nobody makes, or one without an end; the text names page and block.
    """
    markers = [match[1] for match in _MARKER.finditer(page)]
    for start, end in zip(markers[::2], [*markers[1::2], ""], strict=False):
        if start == "end" or end != "end":
            raise ValueError(f"{name}: `<!-- {start} -->` and `<!-- end -->` must follow each other by turns")
        if start.removeprefix("results: ") not in BLOCKS:
            raise ValueError(f"{name}: no block {start.removeprefix('results: ')!r}; there are {', '.join(BLOCKS)}")
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match['name']](results)}\n{match[4]}", page)


def pages(results: Path, root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Every page as it is, and as the result files have it."""
    content = read_results(results)
    before = {name: (root / name).read_text(encoding="utf-8") for name in PAGES}
    return before, {name: rebuilt(page, content, name) for name, page in before.items()}


def write(results: Path = RESULTS, root: Path = ROOT) -> int:
    """Rebuild the tables of every page from the result files."""
    before, after = pages(results, root)
    for name in PAGES:
        if after[name] != before[name]:
            with written_whole(root / name) as beside:
                beside.write_text(after[name], encoding="utf-8")
        say(f"{name}: {'as it was' if after[name] == before[name] else 'written'}")
    return 0


def check(results: Path = RESULTS, root: Path = ROOT) -> int:
    """Say which pages differ from the result files; exit code 1 if one does."""
    before, after = pages(results, root)
    stale = [name for name in PAGES if after[name] != before[name]]
    for name in stale:
        remark(f"{name}: is not what the result files say; `make results` rewrites it")
    return 1 if stale else 0


if __name__ == "__main__":
    try:
        sys.exit(auto_cli([collect, write, check], as_positional=True))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
