"""Judging: small cases worked by hand, and the verb from weights and folder to table, scores.json and report."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpnet import weights
from hpnet.calibration import Calibration, Curve
from hpnet.cli import main
from hpnet.data.occlusion import occlude
from hpnet.data.reid import JUNK, Person, data_hash, read_split
from hpnet.data.synthetic import SyntheticConfig, write_market1501
from hpnet.data.truth import read_occluded
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.evaluation.evaluate import Side, evaluate, judge, ranked
from hpnet.evaluation.metrics import percent, score, score_queries
from hpnet.evaluation.protocols import PROTOCOLS, Protocol, find_protocol, masks
from hpnet.files import fingerprint
from hpnet.model import HPNet, ModelConfig
from hpnet.parts import PartFeatures

PLAIN = Protocol("plain", "market1501")


def side(*rows: tuple[int, int | None, float, str]) -> Side:
    """People on a circle: (identity, camera, angle in degrees of every part, parts that are seen such as "1100")."""
    people = [Person(Path(f"{number}.jpg"), identity, camera) for number, (identity, camera, _, _) in enumerate(rows)]
    angles = torch.tensor([math.radians(angle) for _, _, angle, _ in rows])
    features = torch.stack([angles.cos(), angles.sin()], 1)[:, None].expand(-1, 4, -1).clone()
    visibility = torch.tensor([[seen == "1" for seen in parts] for _, _, _, parts in rows])
    return Side(people, PartFeatures(features, visibility))


# judge


def test_a_case_worked_by_hand() -> None:
    query = side((1, 1, 0, "1111"), (2, 1, 90, "1100"))
    gallery = side(
        (1, 1, 0, "1111"),  # query 0 itself at its own camera: does not count
        (2, 2, 1, "1111"),  # nearest to query 0, wrong; for query 1 right and furthest but one
        (1, 2, 5, "1111"),
        (1, 3, 60, "0011"),  # right for query 0; has no part in common with query 1
        (3, 2, 80, "1000"),
        (JUNK, 2, 0, "1111"),
    )
    outcome = judge(PLAIN, query, gallery)
    # Query 0: wrong at 1 degree, right at 5, right at 60, wrong at 80. Query 1: 80 wrong, 5 and 1 and 0 degrees follow.
    # query 1 ranks: gallery 4 (10 degrees away), 2 (85), 1 (89, right), 0 (90), 3 (infinitely far).
    assert outcome.mean.valid_queries == 2
    assert outcome.mean.cmc == {1: 0.0, 3: 1.0, 5: 1.0, 10: 1.0}
    assert outcome.mean.mean_ap == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 3) / 2)
    assert outcome.mean.mean_inp == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert outcome.deviation == {}
    # Query 0 shares 4 parts with its best answer, query 1 shares 2.
    assert {parts: scores.valid_queries for parts, scores in outcome.by_common_parts.items()} == {2: 1, 4: 1}
    assert outcome.by_common_parts[2].mean_ap == pytest.approx(1 / 3)
    assert outcome.by_common_parts[4].mean_ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Counted pairs: 4 for query 0, 5 for query 1; one of them (query 1 and the third photo of 1) shares nothing.
    assert outcome.without_common_part == pytest.approx(1 / 9)


def test_only_right_answers_that_count_decide_how_much_is_in_common() -> None:
    query = side((1, 1, 0, "1111"), (5, 1, 0, "1111"))
    gallery = side((1, 2, 9, "1100"), (1, 2, 9, "1000"), (2, 2, 5, "1111"), (1, 1, 0, "1110"), (JUNK, 1, 0, "1111"))
    outcome = judge(PLAIN, query, gallery)
    assert outcome.by_common_parts == {2: outcome.mean}, "and a query without a right answer stands nowhere"


def test_the_rules_of_the_row_are_followed() -> None:
    query = side((1, 1, 0, "1000"))
    gallery = side((2, 2, 30, "1000"), (1, 2, 30, "1000"), (1, 2, 90, "0001"))
    trapezoid = judge(replace(PLAIN, ap="trapezoid"), query, gallery).mean
    assert trapezoid.mean_ap == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    swapped = Side([gallery.people[n] for n in (1, 0, 2)], gallery.features[[1, 0, 2]])
    assert judge(replace(PLAIN, ties="worst"), query, swapped).mean.cmc[1] == 0.0
    assert judge(replace(PLAIN, ties="index"), query, swapped).mean.cmc[1] == 1.0
    # Looking at hidden parts too, everybody can be compared, and the order is the same.
    ignoring = judge(replace(PLAIN, visibility="ignore"), query, gallery)
    assert ignoring.mean.mean_ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ignoring.without_common_part == pytest.approx(1 / 3)


def test_judge_equals_the_doors_it_is_made_of() -> None:
    random = torch.Generator().manual_seed(0)

    def crowd(n: int, camera: int) -> Side:
        features = torch.nn.functional.normalize(torch.randn(n, 4, 8, generator=random), dim=-1)
        seen = torch.rand(n, 4, generator=random) < 0.6
        people = [Person(Path(f"{camera}-{number}.jpg"), number % 7, (camera, None)[number % 2]) for number in range(n)]
        return Side(people, PartFeatures(features, seen))

    query, gallery = crowd(20, 1), crowd(60, 2)
    for name in ("occluded_reid", "occluded_reid-authors"):
        row = PROTOCOLS[name]
        distance = part_distance(query.features, gallery.features, row.metric, row.visibility)
        match, ignore = masks(query.people, gallery.people)
        assert judge(row, query, gallery).mean == score(distance, match, ignore, row.ap, row.ties)


def test_single_gallery_shot() -> None:
    """Person 1's two photos: one right beside the query, one behind person 2. Half of the trials draw each."""
    query = side((1, None, 0, "1111"))
    gallery = side((1, None, 1, "1111"), (2, None, 10, "1111"), (1, None, 20, "1111"))
    row = replace(PLAIN, trials=400)
    outcome = judge(row, query, gallery, seed=1)
    share = outcome.mean.cmc[1]
    assert share == pytest.approx(0.5, abs=0.1), "400 throws of a coin: four standard deviations"
    # A trial scores AP 1 or 1/2, and R1 1 or 0.
    assert outcome.mean.mean_ap == pytest.approx(share + (1 - share) / 2)
    assert outcome.mean.cmc[3] == 1.0
    assert outcome.mean.valid_queries == 1
    wanted = 100 * math.sqrt(share * (1 - share) * 400 / 399)
    assert outcome.deviation["R1"] == pytest.approx(wanted)
    assert outcome.deviation["mAP"] == pytest.approx(wanted / 2)
    assert outcome.deviation["R10"] == 0.0
    assert judge(row, query, gallery, seed=1) == outcome
    assert judge(row, query, gallery, seed=2).mean != outcome.mean


def test_a_single_trial_has_no_deviation() -> None:
    query, gallery = side((1, None, 0, "1111")), side((1, None, 1, "1111"), (2, None, 10, "1111"))
    outcome = judge(replace(PLAIN, trials=1), query, gallery)
    assert outcome.deviation == {}
    assert outcome.mean.cmc[1] == 1.0


@pytest.mark.parametrize("gallery", [side((1, 1, 0, "1111"), (2, 2, 0, "1111")), side((JUNK, 2, 0, "1111"))])
def test_no_right_answer_is_an_error_and_no_score(gallery: Side) -> None:
    with pytest.raises(ValueError, match="no query has a right answer"):
        judge(PLAIN, side((1, 1, 0, "1111")), gallery)
    with pytest.raises(ValueError, match="no query has a right answer"):
        judge(replace(PLAIN, trials=3), side((1, 1, 0, "1111")), gallery)


def test_ranked_lists_leave_out_what_does_not_count() -> None:
    query = side((9, 1, 50, "1111"), (1, 1, 0, "1100"))
    gallery = side(
        (1, 1, 0, "1111"), (2, 1, 40, "1111"), (1, 2, 20, "1111"), (JUNK, 2, 1, "1111"), (3, 1, 2, "0011")
    )  # fmt: skip
    distance, rows = ranked(PLAIN, query, gallery, 1, 10)
    assert rows.tolist() == [2, 1]
    wanted = [2 * math.sin(math.radians(degrees) / 2) for degrees in (20, 40)]
    assert distance.tolist() == pytest.approx(wanted, abs=1e-6)
    assert ranked(PLAIN, query, gallery, 1, 1)[1].tolist() == [2]


def test_groups_are_scored_by_themselves() -> None:
    query = side((1, 1, 0, "1111"), (2, 1, 90, "1111"), (9, 1, 0, "1111"))
    gallery = side((1, 2, 1, "1111"), (2, 2, 5, "1111"), (3, 2, 89, "1111"))
    groups = {
        "half": {"first": torch.tensor([True, False, False]), "second": torch.tensor([False, True, True])},
        "other": {"all": torch.tensor([True, True, True]), "without an answer": torch.tensor([False, False, True])},
    }
    outcome = judge(PLAIN, query, gallery, groups=groups)
    # Query 0 finds its right answer first; query 1 second, behind 3; query 2 has none.
    first, second = outcome.by_group["half"].values()
    assert (first.cmc[1], first.valid_queries) == (1.0, 1)
    assert (second.cmc[1], second.mean_ap, second.valid_queries) == (0.0, pytest.approx(1 / 2), 1)
    assert outcome.by_group["other"] == {"all": outcome.mean}, "a group without a valid query has no scores"
    assert judge(PLAIN, query, gallery).by_group == {}


# evaluate, the verb


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = HPNet(ModelConfig(trunk="resnet18", branch="compact", parsing_channels=8, size=(64, 32)))
    with torch.no_grad():
        for number, head in enumerate(model.parsing_heads):
            # Untrained heads give even odds everywhere; so each finds its part in some photos and not in others.
            head.conv2.weight.mul_(1000)
            head.conv2.bias.fill_(0.1 * (number - 1))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(model, path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "Market-1501"
    config = SyntheticConfig(
        identities=2, test_identities=4, cameras=2, shots=2, distractors=3, junk=2, size=(64, 32), seed=1
    )
    write_market1501(root, config)
    return root


def run(
    capsys: pytest.CaptureFixture[str], weights: Path, root: Path, *, protocol: str = "market1501", **options: Any
) -> tuple[int, str, str]:
    capsys.readouterr()
    code = evaluate(weights, protocol=protocol, root=root, **options)
    return (code, *capsys.readouterr())


def test_scores_json_names_everything_that_decided_it(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, model_file, drawn, out=tmp_path / "scores", seed=5)
    assert code == 0
    record = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert str(tmp_path / "scores" / "scores.json") in err

    query, gallery = read_split("market1501", drawn, "query"), read_split("market1501", drawn, "gallery")
    counted = [person for person in gallery if person.identity != JUNK]
    assert (len(query), len(gallery), len(counted)) == (8, 21, 19)
    assert record["weights"]["sha256"] == sha256(model_file.read_bytes()).hexdigest()
    assert record["weights"]["fingerprint"] == fingerprint(model_file)
    assert record["weights"]["config"]["trunk"] == "resnet18"
    assert record["weights"]["config"]["mean"] == [0.486, 0.459, 0.408]
    for name, people, identities in (("query", query, 4), ("gallery", counted, 5)):
        data = record["data"][name]
        assert (data["images"], data["identities"]) == (len(people), identities)
        assert data["sha256"] == data_hash(people, drawn)
        assert len(data["images_per_visible_part"]) == 4
    rules = {
        "name": "market1501", "data_set": "market1501", "query": "query", "gallery": "gallery", "held_out": 0,
        "trials": 0, "metric": "euclidean", "visibility": "common", "ap": "rectangle", "ties": "worst",
        "occluded": [],
    }  # fmt: skip
    assert record["protocol"] == rules
    assert record["seed"] == 5
    assert record["versions"].keys() == {"hpnet", "torch", "python", "device"}
    assert record["published"] == PROTOCOLS["market1501"].published

    # The numbers, from the photos on, by the doors of design section 4.
    embedder = Embedder(model_file)
    sides = [embedder([person.path for person in people]) for people in (query, counted)]
    assert 0 < sides[1].visibility.float().mean() < 1, "some parts must be hidden for this test to be worth it"
    scores = score(part_distance(*sides), *masks(query, counted))
    assert record["scores"] == pytest.approx(percent(scores), abs=1e-9)
    assert record["valid_queries"] == scores.valid_queries == 8
    assert sum(each["queries"] for each in record["by_common_parts"].values()) == 8
    share = (sides[0].visibility.float() @ sides[1].visibility.float().T)[~masks(query, counted)[1]].eq(0)
    assert record["pairs_without_common_part"] == pytest.approx(share.double().mean().item())
    average = sum(each["queries"] * each["mAP"] for each in record["by_common_parts"].values()) / 8
    assert average == pytest.approx(record["scores"]["mAP"])


@pytest.fixture(scope="module")
def calibrated(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, with probabilities."""
    curves = {f"{number:04b}": Curve(10.0, 12.0, 100, 100) for number in range(1, 16)}
    path = tmp_path_factory.mktemp("calibrated") / "tiny.safetensors"
    weights.with_training(model_file, path, {"calibration": Calibration(4, curves).as_record()})
    return path


def test_decisions_are_judged_too(
    calibrated: Path, model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    code, printed, _ = run(capsys, calibrated, drawn, out=out, report=tmp_path / "page")
    assert code == 0
    record = json.loads((out / "scores.json").read_text())
    # One curve for all patterns ranks as the distance does.
    assert record["ranked_by_probability"] == pytest.approx(record["scores"])
    assert set(record["open_set"]) == {"fpir_asked", "by_distance", "by_probability"}
    assert record["open_set"]["by_distance"]["strangers"] == 8
    assert record["calibration"]["pairs_of_one_person"] > 0
    page = (tmp_path / "page" / "report.html").read_text()
    for text in ("TPIR at FPIR 1%", "by P(same)", "how far P(same) is off"):
        assert text in " ".join(printed.split())
        assert text in page
    # Without a calibration, or by another distance than the calibrated one, the distance alone is judged.
    for weights_file, options in ((model_file, {}), (calibrated, {"distance": "cosine+query"})):
        run(capsys, weights_file, drawn, out=out, **options)
        record = json.loads((out / "scores.json").read_text())
        assert "calibration" not in record
        assert set(record["open_set"]) == {"fpir_asked", "by_distance"}


def test_the_table_prints_as_the_papers_do(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = run(capsys, model_file, drawn, out=tmp_path)
    assert re.search(r"R1\W+R3\W+R5\W+R10\W+mAP\W+mINP", out)
    released = next(line for line in out.splitlines() if "published: HPNet, released" in line)
    assert re.findall(r"[\d.]+", released) == ["91.2", "97.0", "98.0", "74.6"]
    ours = next(line for line in out.splitlines() if "these weights" in line)
    record = json.loads((tmp_path / "scores.json").read_text())
    wanted = [f"{record['scores'][name]:.1f}" for name in ("R1", "R3", "R5", "R10", "mAP", "mINP")]
    assert re.findall(r"[\d.]+", ours) == wanted
    assert "8 queries (8 with a right answer), 19 gallery photos" in out
    assert "euclidean+common" in out
    assert "parts in common" in out


def test_a_second_run_takes_the_features_of_the_first(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, model_file, drawn, out=tmp_path)
    first = (tmp_path / "scores.json").read_text()
    assert len(list(tmp_path.glob("features-*.npz"))) == 2

    def refuse(self: Embedder, images: Tensor) -> Any:
        raise AssertionError("photos were looked at again")

    monkeypatch.setattr(Embedder, "look", refuse)
    run(capsys, model_file, drawn, out=tmp_path)
    assert (tmp_path / "scores.json").read_text() == first
    # Another distance on the same photos costs no second pass either.
    run(capsys, model_file, drawn, out=tmp_path, distance="cosine+authors")
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["visibility"] == "authors"


def test_other_weights_or_photos_are_looked_at_again(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, other = tmp_path / "Market-1501", tmp_path / "other.safetensors"
    shutil.copytree(drawn, root)
    run(capsys, model_file, root, out=tmp_path / "out")
    weights.save(HPNet(weights.load(model_file).config), other)
    run(capsys, other, root, out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("features-*.npz"))) == 4
    next((root / "query").glob("*.jpg")).unlink()
    run(capsys, model_file, root, out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("features-*.npz"))) == 5
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["data"]["query"]["images"] == 7


def test_scores_lie_beside_the_weights_unless_told(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run" / "weights.safetensors"
    copy.parent.mkdir()
    shutil.copy(model_file, copy)
    run(capsys, copy, drawn, protocol="market1501-authors")
    record = json.loads((tmp_path / "run" / "evaluate" / "market1501-authors" / "scores.json").read_text())
    assert record["protocol"]["ap"] == "trapezoid"


def test_json_is_all_that_goes_to_standard_output(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, model_file, drawn, out=tmp_path, json=True, report=tmp_path / "report")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "scores.json").read_text())
    assert "NaN" not in out


def test_another_distance(model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, model_file, drawn, out=tmp_path, distance="euclidean+ignore")
    record = json.loads((tmp_path / "scores.json").read_text())
    assert (record["protocol"]["metric"], record["protocol"]["visibility"]) == ("euclidean", "ignore")
    assert (record["protocol"]["ap"], record["protocol"]["ties"]) == ("rectangle", "worst")


# Occluded queries


@pytest.fixture(scope="module")
def occluded(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("occluded") / "out"
    assert occlude(drawn, out, part_maps=drawn / "part_maps") == 0
    return out


def test_occluded_queries_meet_the_whole_gallery(
    model_file: Path, drawn: Path, occluded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything in scores.json from the pictures on, by the doors."""
    run(capsys, model_file, drawn, protocol="market1501-occluded", occluded=occluded, out=tmp_path)
    record = json.loads((tmp_path / "scores.json").read_text())
    truth = read_occluded(occluded, ("person", "object", "frame"))
    gallery = [person for person in read_split("market1501", drawn, "gallery") if person.identity != JUNK]
    assert record["data"]["query"]["images"] == len(truth.people) == 24
    assert record["data"]["query"]["sha256"] == data_hash(truth.people, occluded)
    assert record["data"]["gallery"]["sha256"] == data_hash(gallery, drawn)
    assert record["protocol"]["occluded"] == ["person", "object", "frame"]

    embedder = Embedder(model_file)
    sides = [embedder([person.path for person in people]) for people in (truth.people, gallery)]
    scores = score_queries(part_distance(*sides), *masks(truth.people, gallery))
    assert record["scores"] == pytest.approx(percent(scores.mean()), abs=1e-9)
    told = record["occlusion"]
    for kind in ("person", "object", "frame"):
        mean = scores.mean(torch.tensor([each == kind for each in truth.kind]))
        assert told["by_kind"][kind] == pytest.approx({**percent(mean), "queries": 8}, abs=1e-9)
    for level in (1, 2, 3):
        mean = scores.mean(truth.severity == level)
        assert told["by_severity"][str(level)] == pytest.approx(
            {**percent(mean), "queries": mean.valid_queries}, abs=1e-9
        )
    for column, name in enumerate(("head", "torso", "upper_legs", "lower_legs")):
        hidden = truth.sure[:, column] & ~truth.visible[:, column]
        if hidden.any():
            mean = scores.mean(hidden)
            assert told["by_hidden_part"][name] == pytest.approx(
                {**percent(mean), "queries": int(hidden.sum())}, abs=1e-9
            )
        sure = truth.sure[:, column]
        right = (sides[0].visibility & truth.visible)[sure, column].sum()
        predicted = sides[0].visibility[sure, column].sum()
        accuracy = told["visibility"][name]
        if predicted:
            assert accuracy["precision"] == pytest.approx(100 * float(right / predicted))
        assert accuracy["unsure"] == int((~sure).sum())
    assert told["visibility"]["all"]["unsure"] == sum(
        told["visibility"][name]["unsure"] for name in ("head", "torso", "upper_legs", "lower_legs")
    )
    manifest = json.loads((occluded / "manifest.json").read_text())
    assert told["made"] == manifest
    assert (told["made"]["seed"], len(told["made"]["truth_sha256"])) == (0, 64)


def test_one_kind_of_occlusion(
    model_file: Path,
    drawn: Path,
    occluded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = run(
        capsys,
        model_file,
        drawn,
        protocol="market1501-occluded-frame",
        occluded=occluded,
        out=tmp_path,
        report=tmp_path,
    )
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["data"]["query"]["images"] == 8
    assert record["occlusion"]["by_kind"].keys() == {"frame"}
    assert record["occlusion"]["made"]["kinds"].keys() == {"frame"}
    for level, scores in record["occlusion"]["by_severity"].items():
        row = next(line for line in out.splitlines() if f"severity {level} ({scores['queries']} queries)" in line)
        assert re.findall(r"[\d.]+", row)[2:] == [
            f"{scores[name]:.1f}" for name in ("R1", "R3", "R5", "R10", "mAP", "mINP")
        ]
    assert re.search(r"part\W+visible\W+hidden\W+unsure\W+precision %\W+recall %\W+hidden recall %", out)
    legs = record["occlusion"]["visibility"]["lower_legs"]
    row = next(line for line in out.splitlines() if line.strip("│ ").startswith("lower legs "))
    assert [int(number) for number in re.findall(r"\d+", row)[:3]] == [
        legs[name] for name in ("visible", "hidden", "unsure")
    ]
    assert "predicted visibility against the truth" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_baseline_on_occluded_queries_has_no_visibility(
    drawn: Path, occluded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(trunk="resnet18", branch="compact", parsing_channels=8, size=(64, 32), baseline=True)
    torch.manual_seed(1)
    weights.save(HPNet(config), tmp_path / "baseline.safetensors")
    file = tmp_path / "baseline.safetensors"
    run(capsys, file, drawn, protocol="market1501-occluded", occluded=occluded, out=tmp_path)
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["occlusion"]["visibility"] == {}
    assert record["occlusion"]["by_severity"].keys() == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("protocol", "folder", "told"),
    [
        ("market1501-occluded", None, "protocol market1501-occluded needs --occluded, the folder that hpnet occlude"),
        ("market1501", "occluded", "protocol market1501 takes its queries from root: leave --occluded away"),
        ("market1501-occluded-person", "gone", "gone/manifest.json: no such file; give the folder that hpnet occlude"),
    ],
)
def test_the_occluded_folder_goes_with_its_protocols(
    model_file: Path, drawn: Path, tmp_path: Path, protocol: str, folder: str | None, told: str
) -> None:
    occluded = None if folder is None else tmp_path / folder
    with pytest.raises(ValueError, match=re.escape(told)):
        evaluate(model_file, protocol=protocol, root=drawn, out=tmp_path / "out", occluded=occluded)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("distance", ["euclidean", "ignore", "cosine+all", "euclidean,common", ""])
def test_an_unknown_distance_is_refused_at_once(model_file: Path, drawn: Path, tmp_path: Path, distance: str) -> None:
    with pytest.raises(ValueError, match=rf"^distance '{re.escape(distance)}': write METRIC\+VISIBILITY of euclidean"):
        evaluate(model_file, protocol="market1501", root=drawn, out=tmp_path, distance=distance)
    assert not list(tmp_path.iterdir())


def test_the_report_is_a_page(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, model_file, drawn, out=tmp_path / "scores", report=tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "market1501" in page
    assert "published: HPNet, released" in page
    for person in read_split("market1501", drawn, "query"):
        assert f"{person.identity}, camera {person.camera}" in page
    assert "<img" in page


def test_a_broken_photo_gives_one_line_and_no_score(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "Market-1501"
    shutil.copytree(drawn, root)
    broken = max((root / "bounding_box_test").glob("0*.jpg"))
    broken.write_bytes(broken.read_bytes()[:200])
    code = main(["evaluate", str(model_file), "--protocol", "market1501", "--root", str(root), "--out", str(tmp_path)])
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("hpnet evaluate: ")
    assert broken.name in last
    assert "Traceback" not in err
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--protocol": "market"}, "unknown protocol 'market'"),
        ({"--root": "nowhere"}, "nowhere"),
        ({"--protocol": "occluded_reid"}, "Occluded-REID"),
        ({"--distance": "euclidean+most"}, "euclidean+most"),
    ],
)
def test_the_verb_answers_wrong_words_with_one_line(
    model_file: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    told: str,
) -> None:
    options = {"--protocol": "market1501", "--root": str(drawn), "--out": str(tmp_path), **change}
    assert main(["evaluate", str(model_file), *(word for pair in options.items() for word in pair)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_weights_that_are_missing(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.safetensors"
    assert main(["evaluate", str(missing), "--protocol", "market1501", "--root", str(drawn)]) == 2
    assert capsys.readouterr().err == f"hpnet evaluate: {missing}: no such weights file\n"


def test_the_verb_from_the_command_line(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--protocol", "market1501", "--root", str(drawn), "--out", str(tmp_path), "--batch_size", "5", "--json"]
    assert main(["evaluate", str(model_file), *words]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["gallery"]["images"] == 19


def test_held_out_identities_of_the_training_set(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, model_file, drawn, protocol="market1501-validation", out=tmp_path)
    record = json.loads((tmp_path / "scores.json").read_text())
    # 2 people x 2 cameras x 2 shots: the first of each is a query.
    assert record["data"]["query"]["images"] == record["data"]["gallery"]["images"] == 4
    assert record["valid_queries"] == 4


def test_held_out_people_half_hidden(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol by which occlusion training is chosen; its pictures and the test set's are not mixed up."""
    row = find_protocol("market1501-validation-occluded")
    monkeypatch.setitem(PROTOCOLS, row.name, replace(row, held_out=1))
    maps, pictures = drawn / "part_maps", tmp_path / "occluded"
    assert occlude(drawn, pictures, part_maps=maps, held_out=1) == 0
    capsys.readouterr()
    run(capsys, model_file, drawn, protocol=row.name, occluded=pictures, out=tmp_path / "scores")
    record = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert record["data"]["query"]["images"] == 3 * 2
    assert record["data"]["gallery"]["images"] == 2
    assert record["occlusion"]["made"]["held_out"] == 1
    with pytest.raises(ValueError, match="of the query photos"):
        evaluate(model_file, protocol="market1501-occluded", root=drawn, occluded=pictures, out=tmp_path)
    monkeypatch.setitem(PROTOCOLS, row.name, row)
    with pytest.raises(ValueError, match="--held_out 50"):
        evaluate(model_file, protocol=row.name, root=drawn, occluded=pictures, out=tmp_path)


def test_the_baseline_can_be_judged(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(trunk="resnet18", branch="compact", parsing_channels=8, size=(64, 32), baseline=True)
    torch.manual_seed(1)
    weights.save(HPNet(config), tmp_path / "baseline.safetensors")
    run(capsys, tmp_path / "baseline.safetensors", drawn, out=tmp_path, report=tmp_path)
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["by_common_parts"].keys() == {"1"}
    assert record["pairs_without_common_part"] == 0
    assert (tmp_path / "report.html").is_file()


def test_nothing_half_written_is_left(
    model_file: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, model_file, drawn, out=tmp_path)
    before = (tmp_path / "scores.json").read_text()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", os.fspath(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            run(capsys, model_file, drawn, out=tmp_path, seed=3)
    assert (tmp_path / "scores.json").read_text() == before
    assert not list(tmp_path.glob(".*"))
