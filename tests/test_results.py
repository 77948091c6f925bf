"""The committed pages are what the result files say, and the result files name what they belong to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpnet.data.reid import Person
from hpnet.evaluation.decisions import ByProbability, Decisions
from hpnet.evaluation.metrics import Scores
from hpnet.evaluation.openset import OpenSet
from hpnet.evaluation.reliability import Reliability
from hpnet.files import sha256_of
from hpnet.parts import PartFeatures
from hpnet.training.recipe import Recipe, read_recipe

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package

import first_answers  # noqa: E402
import records  # noqa: E402
import result_tables  # noqa: E402
import results  # noqa: E402
import tracklets  # noqa: E402
import trial_tables  # noqa: E402

RESULTS = records.read_results(results.RESULTS)
ABLATION = [name for name in RESULTS.runs if name.startswith("ablation-")]


# --- what is committed


@pytest.mark.parametrize("page", results.PAGES)
def test_the_page_is_what_the_files_say(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert results.rebuilt(text, RESULTS, page) == text, "a number was changed by hand: `make results`"


def test_every_table_stands_on_a_page() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in results.PAGES)
    assert [name for name in results.BLOCKS if f"<!-- results: {name} -->" not in pages] == []


@pytest.mark.parametrize("name", RESULTS.runs)
def test_a_run_names_what_decided_it(name: str) -> None:
    run = RESULTS.runs[name]
    assert len({record["weights"]["sha256"] for record in run.scores.values()}) == 1
    for record in run.scores.values():
        assert re.fullmatch("[0-9a-f]{64}", record["weights"]["sha256"])
        assert isinstance(record["seed"], int)
        assert all(re.fullmatch("[0-9a-f]{64}", side["sha256"]) for side in record["data"].values())
        # Weights leave out what only teaches the rest.
        both = (record["weights"]["config"], run.recipe["model"])
        seen, trained = ({**each, "identities": 0, "global_branch": False} for each in both)
        assert {key: seen[key] for key in trained} == trained
    assert run.training["steps"] > 0


def test_all_runs_were_judged_on_the_same_photos() -> None:
    photos: dict[str, set[str]] = {}
    for run in RESULTS.runs.values():
        for record in run.scores.values():
            hashes = " ".join(side["sha256"] for side in record["data"].values())
            photos.setdefault(record["protocol"]["name"].removesuffix("-authors"), set()).add(hashes)
    assert {name: len(each) for name, each in photos.items()} == dict.fromkeys(photos, 1)


def test_nobodys_paths_are_published() -> None:
    for path in results.RESULTS.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            assert not re.search(r"(^|[\s\"':])(/|~/)\w", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", ABLATION)
def test_the_readmes_command_gives_this_recipe(name: str) -> None:
    """And so an ablation differs from HPNet in what the command says, and in nothing else."""
    _, variant, seed = name.split("-")
    commands = (results.RESULTS / "README.md").read_text(encoding="utf-8")
    change = re.search(rf"^run {variant} \d+(.*)$", commands, re.MULTILINE)
    assert change, f"results/README.md has no command for {variant}"
    overrides = [*change[1].split(), "--seed", seed.removeprefix("seed")]
    wanted = read_recipe(results.RESULTS / "ablation-hpnet-seed0" / "recipe.yaml", overrides)
    assert read_recipe(results.RESULTS / name / "recipe.yaml").conflicts(wanted) == []


def test_the_ablation_has_one_budget() -> None:
    assert len({RESULTS.runs[name].training["steps"] for name in ABLATION}) == 1
    assert set(RESULTS.variants()) == {variant for variant, _ in result_tables.VARIANTS.values()}


# --- blocks


def test_a_number_changed_by_hand_comes_back() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    number = re.search(r"\| HPNet \| Eq. 1 \| ([\d.]+) ", page)
    assert number
    forged = page[: number.start(1)] + "99.9" + page[number.end(1) :]
    assert results.rebuilt(forged, RESULTS) == page


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(alphabet="ab| \n-<!>"), st.sampled_from(["demo", "costs"]), st.text("x|\n"))))
def test_what_stands_outside_the_blocks_stays(pieces: list[tuple[str, str, str]]) -> None:
    page = "".join(f"{text}<!-- results: {name} -->\n{stale}<!-- end -->" for text, name, stale in pieces)
    wanted = "".join(
        f"{text}<!-- results: {name} -->\n{result_tables.BLOCKS[name](RESULTS)}\n<!-- end -->"
        for text, name, _ in pieces
    )
    assert results.rebuilt(page, RESULTS) == wanted


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<!-- results: wishes -->\n<!-- end -->", "no block 'wishes'"),
        ("<!-- results: demo -->\n", "by turns"),
        ("<!-- end -->", "by turns"),
        ("<!-- results: demo -->\n<!-- results: costs -->\n<!-- end -->", "by turns"),
    ],
)
def test_a_wrong_marker_is_named(page: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        results.rebuilt(page, RESULTS, "docs/a.md")
    assert str(caught.value).startswith("docs/a.md: ")


def test_the_ablation_table_is_what_evaluate_wrote() -> None:
    block = result_tables.ablation(RESULTS)
    for variant, title in (("baseline", "Baseline"), ("no_human", "HPNet, lambda_seg^coco = 0"), ("hpnet", "HPNet")):
        row = next(line for line in block.splitlines() if line.startswith(f"| {title} |")).split(" | ")
        for column, protocol in enumerate(result_tables.SETTINGS, start=2):
            files = sorted(results.RESULTS.glob(f"ablation-{variant}-seed*/{protocol}.json"))
            scores = [json.loads(path.read_text(encoding="utf-8"))["scores"] for path in files]
            means = [sum(each[name] for each in scores) / len(scores) for name in ("R1", "mAP")]
            found = [float(cell.split(" (")[0].strip(" |")) for cell in row[column].split(" / ")]
            assert found == pytest.approx(means, abs=0.0501)


def test_scores_of_occluded_copies() -> None:
    def record(protocol: str, visibility: str, metric: str, at: float) -> dict[str, Any]:
        scores = {"R1": at, "R5": at + 1, "R10": at + 2, "mAP": at + 3, "mINP": at + 4}
        occlusion = {
            "by_severity": {"1": {**scores, "queries": 3369}, "2": {**scores, "R1": at + 9, "queries": 30}},
            "visibility": {
                name: {
                    "visible": 1000,
                    "hidden": 20,
                    "unsure": 3,
                    "precision": 90.0,
                    "recall": 80.0,
                    "hidden_recall": None,
                }
                for name in ("torso", "all")
            },
        }
        rules = {"name": protocol, "metric": metric, "visibility": visibility}
        return {"protocol": rules, "scores": scores, "occlusion": occlusion}

    plain = record("market1501-occluded", "common", "euclidean", 20.0)
    authors = record("market1501-occluded-authors", "authors", "cosine", 40.0)
    found = records.Results({"compact": records.Run("compact", {}, {}, {"a": authors, "b": plain}, {})}, {})
    severity = result_tables.BLOCKS["severity"](found).splitlines()
    assert severity[2:] == [
        "| 1 | 3,369 | 20.0 | 21.0 | 23.0 | 40.0 | 41.0 | 43.0 |",
        "| 2 | 30 | 29.0 | 21.0 | 23.0 | 49.0 | 41.0 | 43.0 |",
    ]
    assert "| torso | 1,000 | 20 | 3 | 90.0 | 80.0 | - |" in result_tables.visibility(found)
    compact = result_tables.compact_scores(found)
    assert "(`market1501-occluded`) | 20.0 | 21.0 | 22.0 | 23.0 | 24.0 |" in compact
    assert "(`market1501-occluded-authors`) | 40.0 | 41.0 | 42.0 | 43.0 | 44.0 |" in compact
    assert result_tables.BLOCKS["kind"](records.Results({"compact": run_with({}, 0)}, {})) == result_tables.NOTHING


def run_with(
    scores: dict[str, float], seed: int, protocol: str = "market1501", visibility: str = "common"
) -> records.Run:
    rules = {"name": protocol, "metric": "euclidean", "visibility": visibility}
    return records.Run("r", {"seed": seed}, {}, {"a": {"protocol": rules, "scores": scores}}, {})


def two_seeds(hpnet: tuple[float, float], baseline: tuple[float, float]) -> records.Results:
    runs = {}
    for variant, values in (("hpnet", hpnet), ("baseline", baseline)):
        for seed, value in enumerate(values):
            runs[f"ablation-{variant}-seed{seed}"] = run_with({"R1": value, "mAP": value}, seed)
    return records.Results(runs, {})


def test_seeds_are_averaged_and_shown() -> None:
    found = two_seeds((50.0, 53.0), (40.0, 41.0))
    assert result_tables.seeds_cell(result_tables.by_seed(found, "HPNet", "market1501", "R1")) == "51.5 (50.0, 53.0)"
    assert result_tables.seeds_cell({0: 50.04}) == "50.0"
    assert result_tables.seeds_cell({}) == "-"
    assert result_tables.differences(found, ("HPNet", "Baseline"), "market1501", "R1") == [10.0, 12.0]


def test_only_seeds_that_both_have_are_compared() -> None:
    found = two_seeds((50.0, 53.0), (40.0, 41.0))
    fewer = {name: run for name, run in found.runs.items() if name != "ablation-baseline-seed0"}
    assert result_tables.differences(records.Results(fewer, {}), ("HPNet", "Baseline"), "market1501", "R1") == [12.0]


@pytest.mark.parametrize(
    ("paper", "ours", "said"),
    [
        (25.2, [1.8], "holds"),
        (25.2, [1.8, 0.3], "holds"),
        (25.2, [-4.4], "fails"),
        (25.2, [1.8, -0.3], "within seed noise"),
        (-0.8, [-5.0], "holds"),
        (-0.8, [5.0], "fails"),
        (25.2, [], "-"),
    ],
)
def test_an_ordering_holds_where_every_seed_has_the_papers_sign(paper: float, ours: list[float], said: str) -> None:
    assert result_tables.verdict(paper, ours) == said


def test_the_orderings_table_has_the_papers_differences() -> None:
    """Section 4.4 writes them out: 25.2 and 23.4, 0.8 and 1.1, 2.9 and 3.1, 4.9 and 6.5."""
    block = result_tables.orderings(two_seeds((50.0, 53.0), (51.0, 52.0)))
    for row in (
        "| HPNet over Baseline | +25.2 / +23.4 | - | - | +0.0 / +0.0 **within seed noise** |",
        "| HPNet over HPNet, share Conv5 | +0.8 / +1.1 |",
        "| HPNet over HPNet, lambda_tri = 0 | +2.9 / +3.1 |",
        "| HPNet over HPNet, lambda_seg^coco = 0 | +4.9 / +6.5 |",
    ):
        assert row in block


def test_a_search_without_visibility_is_no_protocol_of_its_own() -> None:
    run = run_with({"R1": 1.0}, 0, visibility="ignore")
    assert run.find("market1501") is None
    assert run.find("market1501", "ignore") is run.scores["a"]
    assert run.find("market1501-authors", "ignore") is None


def test_decisions_as_evaluate_writes_them() -> None:
    found = OpenSet(0.405, 0.0099, (0.9, 0.8), 1650, 1718)
    reliable = Reliability(12000, 3_000_000, 0.021, 0.081, ((0.9, 0.95, 1.0),))
    scores = Scores({1: 0.75, 3: 0.8, 5: 0.85, 10: 0.9}, 0.5, 0.1, 3368)
    decisions = Decisions(found, ByProbability(scores, found, reliable, {4: reliable})).as_record()
    run = run_with({"R1": 73.6, "mAP": 54.1}, 0)
    record = {**run.scores["a"], **decisions}
    filled = records.Results({"compact": records.Run("compact", {}, {}, {"a": record}, {})}, {})
    open_set, calibration = result_tables.open_set(filled), result_tables.calibration(filled)
    assert "| Market-1501, Eq. 1 | 73.6 | 54.1 | 40.5 | 1.0 | 1,650 | 1,718 |" in open_set
    assert "| Market-1501, P(same) | 75.0 | 50.0 | 40.5 | 1.0 | 1,650 | 1,718 |" in open_set
    assert "| Market-1501 | 12,000 | 3,000,000 | 2.1 | 0.081 |" in calibration
    assert "| Market-1501, 4 in common | 12,000 | 3,000,000 | 2.1 | 0.081 |" in calibration


def test_decisions_that_were_not_measured_are_said_to_be_so() -> None:
    bare = records.Results({"compact": run_with({"R1": 73.6}, 0)}, {})
    assert result_tables.open_set(bare) == result_tables.calibration(bare) == "Not measured for these weights."
    without = {**run_with({"R1": 1.0}, 0).scores["a"], **Decisions(None).as_record()}
    neither = records.Results({"compact": records.Run("compact", {}, {}, {"a": without}, {})}, {})
    assert result_tables.open_set(neither) == "Not measured for these weights."


# --- collecting


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run folder as `hpnet train` and `hpnet evaluate` leave it."""
    run = tmp_path / "home" / "run7"
    run.mkdir(parents=True)
    (run / "weights.safetensors").write_bytes(b"weights")
    recipe = Recipe(reid=tmp_path / "Market", part_maps=tmp_path / "maps", initial=tmp_path / "trunk.npz", out=run)
    (run / "recipe.yaml").write_text(recipe.as_text(), encoding="utf-8")
    steps = [
        {"step": n, "epoch": n / 2, "rate": 0.1, "identity": 10.0 - n, "seconds": 1.0 + n % 3, "wait": 0.1}
        for n in range(1, 5)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps), encoding="utf-8")
    scored(run, "market1501")
    scored(run, "market1501-authors")
    return run


def scored(run: Path, protocol: str, **changed: Any) -> None:
    weights = {"sha256": "0" * 64, "file_sha256": sha256_of(run / "weights.safetensors")}
    record = {"protocol": {"name": protocol}, "weights": weights, "scores": {"R1": 12.5}, **changed}
    place = run / "evaluate" / protocol / "scores.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record), encoding="utf-8")


def test_collected_files_are_as_they_were_written(trained: Path, tmp_path: Path) -> None:
    into = tmp_path / "results"
    (into / "mine").mkdir(parents=True)
    (into / "mine" / "stale.json").write_text("{}", encoding="utf-8")
    results.collect(trained, "mine", into=into)
    names = sorted(path.name for path in (into / "mine").iterdir())
    assert names == ["market1501-authors.json", "market1501.json", "recipe.yaml", "training.json"]
    written = trained / "evaluate" / "market1501" / "scores.json"
    assert (into / "mine" / "market1501.json").read_bytes() == written.read_bytes()
    run = records.read_results(into).runs["mine"]
    assert run.training["steps"] == 4
    assert run.training["seconds_per_step"] == 2.0
    assert run.training["minutes"] == 0.1
    assert run.training["last_losses"] == {"identity": 7.5}


def test_a_collected_recipe_knows_no_machine(trained: Path, tmp_path: Path) -> None:
    results.collect(trained, "mine", into=tmp_path / "results")
    text = (tmp_path / "results" / "mine" / "recipe.yaml").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    recipe = read_recipe(tmp_path / "results" / "mine" / "recipe.yaml")
    assert (recipe.reid, recipe.part_maps, recipe.out) == (Path("data/Market"), Path("data/maps"), Path("runs/mine"))
    assert recipe.initial == Path("data/trunk.npz")
    earlier = results.documented({"initial": "/somewhere/first/weights.safetensors"}, "mine")
    assert earlier["initial"] == "runs/first/weights.safetensors"
    with pytest.raises(ValueError, match="classes"):
        results.documented({"classes": "/somewhere/classes.txt"}, "mine")


def refused(trained: Path, said: str, name: str = "mine") -> None:
    into = trained.parents[1] / "results"
    with pytest.raises(ValueError, match=said):
        results.collect(trained, name, into=into)
    assert not into.exists()


def test_scores_with_a_path_are_refused(trained: Path) -> None:
    scored(trained, "market1501", data={"query": {"root": "/somewhere/Market"}})
    refused(trained, "data.query.root")


def test_scores_of_two_weights_are_refused(trained: Path) -> None:
    scored(trained, "market1501", weights={"sha256": "1" * 64})
    refused(trained, "one weights file")


def test_scores_of_other_weights_are_refused(trained: Path) -> None:
    (trained / "weights.safetensors").write_bytes(b"trained further")
    refused(trained, "evaluate again")


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path, trained: Path) -> None:
    (trained / "evaluate").rename(tmp_path / "elsewhere")
    refused(trained, "one weights file")


@pytest.mark.parametrize("name", ["../out", "", "A"])
def test_a_name_stays_in_the_folder(trained: Path, name: str) -> None:
    refused(trained, "small letters", name)


# --- first answers


def test_parts_in_common_with_first_answers() -> None:
    """A stranger with one part in view comes first by Eq. 1; the authors' ranking counts what is hidden, too."""
    people = [[Person(Path("q"), 1, 1)], [Person(Path("a"), 1, 2), Person(Path("b"), 2, 2)]]
    query, right, wrong = torch.zeros(3, 1, 4, 2)
    query[..., 0] = 1
    right[..., 0], right[..., 1] = 0.8, 0.6
    wrong[:, 0, 0], wrong[:, 0, 1] = 0.96, 0.28
    wrong[:, 1:, 1] = 1  # what stands where nothing was seen is like nobody
    shown = torch.tensor([[True] * 4, [True, False, False, False]])
    counted = first_answers.counted(
        people, PartFeatures(query, torch.ones(1, 4).bool()), PartFeatures(torch.cat([right, wrong]), shown)
    )
    assert counted["wholly_visible_queries"] == 1
    assert counted["gallery_percent_by_visible_parts"] == {"0": 0, "1": 50, "2": 0, "3": 0, "4": 50}
    paper, authors = counted["rankings"]["Eq. 1"], counted["rankings"]["authors'"]
    assert (paper["right"]["queries"], paper["wrong"]["queries"]) == (0, 1)
    assert paper["wrong"]["percent_by_common_parts"]["1"] == 100
    assert authors["right"]["percent_by_common_parts"]["4"] == 100


# --- trials


def trial(series: str, name: str, hidden: float, recipe: dict[str, Any]) -> records.Run:
    part = {"hidden_recall": hidden}
    scores = {
        test: {
            "protocol": {"name": test, "metric": "euclidean", "visibility": "common"},
            "scores": {"R1": 50.0 + len(name), "mAP": 40.0},
            "occlusion": {"visibility": {"all": part, "torso": {"hidden_recall": None}}},
        }
        for test in trial_tables.TESTS
    }
    return records.Run(f"trial-{series}-{name}", recipe, {}, scores, {})


def test_trials_stand_beside_the_one_they_change_and_seeds_share_a_row() -> None:
    plain = {"seed": 0, "out": "a", "label_smoothing": 0.0, "model": {"size": [4, 2]}}
    runs = [
        trial("x", "a", 10.0, {**plain, "label_smoothing": 0.5, "out": "b"}),
        trial("x", "base", 20.0, plain),
        trial("x", "b", 30.0, {**plain, "label_smoothing": 0.5, "seed": 1, "average_decay": 0.0}),
        trial("x", "c", 40.0, {**plain, "model": {"global_branch": True, "size": [4, 2]}}),
        trial("y", "base", 50.0, plain),
    ]
    content = records.Results({run.name: run for run in runs}, {})
    both = "51.0 (51.0, 51.0) / 40.0 (40.0, 40.0)"
    assert trial_tables.trials("x")(content).splitlines()[2:] == [
        "| none | 54.0 / 40.0 | 54.0 / 40.0 | 20.0 | - |",
        f"| `label_smoothing: 0.5` | {both} | {both} | 20.0 (10.0, 30.0) | - |",
        "| `model.global_branch: true` | 51.0 / 40.0 | 51.0 / 40.0 | 40.0 | - |",
    ]
    assert trial_tables.trials("z")(content) == "Not measured for these weights."


def test_trials_are_judged_by_validation_identities_alone() -> None:
    trials = [run for name, run in RESULTS.runs.items() if name.startswith(records.TRIAL)]
    assert trials
    assert all(set(run.scores) == set(trial_tables.TESTS) for run in trials)


# --- tracklets


def test_a_track_is_what_one_camera_saw_of_one_person() -> None:
    people = [Person(Path(f"{n}.jpg"), *who) for n, who in enumerate([(7, 1), (0, 1), (7, 2), (7, 1), (0, 1), (-3, 1)])]
    assert sorted(tracklets.tracks_of(people)) == [[0, 3], [1], [2], [4], [5]]


def test_walls_hide_one_half_and_the_other_by_turns() -> None:
    photo = torch.zeros(3, 100, 10, dtype=torch.uint8)
    for turn, hidden in ((0, slice(0, 50)), (1, slice(45, 100)), (2, slice(0, 50))):
        seen = tracklets.walled(photo, turn, torch.Generator().manual_seed(0))
        covered = (seen > 0).all(0).all(1)
        assert bool(covered[hidden].all())
        assert int(covered.sum()) == hidden.stop - hidden.start


def test_templates_join_what_the_views_of_a_track_show() -> None:
    """Two people, each seen once from the waist up and once down; the queries show everything."""
    people = [Person(Path(f"{n}.jpg"), 1 + n // 2, 1) for n in range(4)]
    asking = [Person(Path("q.jpg"), 1, 2), Person(Path("r.jpg"), 2, 2)]
    whole = torch.zeros(2, 4, 2)
    whole[0, :, 0] = whole[1, :2, 0] = whole[1, 2:, 1] = 1  # alike above, unlike below
    upper, lower = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])
    features = whole.repeat_interleave(2, 0)
    shown = torch.stack([upper, lower, upper, lower])
    compared = tracklets.compared(
        tracklets.Side(asking, PartFeatures(whole, torch.ones(2, 4).bool())),
        tracklets.Side(people, PartFeatures(features, shown)),
        0,
    )
    assert compared["tracks"] == 2
    assert [each["size"] for each in compared["galleries"].values()] == [4, 2, 2]
    assert compared["galleries"]["templates"]["R1"] == 100
    assert compared["galleries"]["photos"]["mAP"] < 100
