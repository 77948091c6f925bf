"""search and compare, end to end with a small untrained network: a photo must at least find itself."""

from __future__ import annotations

import csv
import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from hpnet import weights
from hpnet.calibration import Calibration, Curve, calibration_of
from hpnet.data.photos import write_picture
from hpnet.data.synthetic import draw
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.gallery import Gallery, GalleryError
from hpnet.ingest import add
from hpnet.model import HPNet, ModelConfig
from hpnet.parts import Part, PartFeatures
from hpnet.search import compare, search
from hpnet.visualize import contact_sheet

SIZE = (64, 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn photos of three people, their table, and weights that find every part."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    config = ModelConfig(trunk="resnet18", branch="compact", parsing_channels=8, size=SIZE, stride=8, threshold=0.001)
    weights.save(HPNet(config), folder / "w.safetensors", training={"same_below": 0.05})
    rows = []
    for identity in (1, 2, 3):
        for camera in (1, 2):
            path = folder / "photos" / f"{identity}_{camera}.png"
            photo = draw(identity, camera, 0, size=SIZE).photo
            write_picture(path, contact_sheet([photo], 1, size=SIZE).crop((8, 8, 8 + SIZE[1], 8 + SIZE[0])))
            rows.append({"path": f"photos/{path.name}", "identity": identity, "camera": camera})
    with (folder / "people.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "identity", "camera"])
        table.writeheader()
        table.writerows(rows)
    return folder


def test_a_photo_finds_itself(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = tmp_path / "people"
    assert add(world / "people.csv", gallery=gallery, weights=world / "w.safetensors", json=True) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 6
    query = world / "photos" / "2_1.png"
    code = search(query, gallery=gallery, weights=world / "w.safetensors", k=3, report=tmp_path / "page", json=True)
    assert code == 0
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["matches"][0]["identity"] == 2
    assert answer["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)  # stored in float16
    assert len(answer["matches"]) == 3
    assert answer["matches"][0]["parts"] == answer["visible"]
    assert "2_1.png" in (tmp_path / "page" / "report.html").read_text()


def test_search_prints_what_is_hidden(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = tmp_path / "people"
    add(world / "photos", gallery=gallery, weights=world / "w.safetensors")
    search(world / "photos" / "1_1.png", gallery=gallery, weights=world / "w.safetensors")
    printed = " ".join(capsys.readouterr().out.split())
    assert "hidden in the query" in printed
    assert "1_1.png" in printed


def test_filter_and_parts_restrict_the_search(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = tmp_path / "people"
    add(world / "people.csv", gallery=gallery, weights=world / "w.safetensors", json=True)
    capsys.readouterr()
    query = world / "photos" / "2_1.png"
    search(query, gallery=gallery, weights=world / "w.safetensors", filter="camera = 2", parts=["HEAD"], json=True)
    [answer] = json.loads(capsys.readouterr().out)
    assert {match["camera"] for match in answer["matches"]} == {2}
    assert all(match["parts"] == ["HEAD"] for match in answer["matches"])


def test_json_tells_moments_and_attributes_as_text_and_numbers(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, noon = world / "photos" / "1_1.png", datetime(2024, 5, 1, 12, tzinfo=UTC)
    embedder = Embedder(world / "w.safetensors")
    gallery = Gallery.create(tmp_path / "people", embedder.fingerprint)
    gallery.add(embedder(photo), [photo], times=[noon], attributes={"seen": [noon], "speed": [1.5], "shop": ["north"]})
    search(photo, gallery=gallery.path, weights=world / "w.safetensors", json=True)
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["matches"][0]["time"] == noon.isoformat()
    assert answer["matches"][0]["attributes"] == {"seen": noon.isoformat(), "speed": 1.5, "shop": "north"}
    assert answer["apart"] == {"count": 0, "people": []}


def test_who_cannot_be_compared_is_listed_apart(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, embedder = world / "photos" / "1_1.png", Embedder(world / "w.safetensors")
    hidden = PartFeatures(embedder(photo).features, torch.zeros(1, 4, dtype=torch.bool))
    gallery = Gallery.create(tmp_path / "people", embedder.fingerprint)
    gallery.add(embedder(photo), [photo], identities=["anna"])
    for number in range(7):
        gallery.add(hidden, [f"wall{number}.jpg"], identities=["bert"])

    def printed(**options: Any) -> str:
        assert search(photo, gallery=gallery.path, weights=world / "w.safetensors", **options) == 0
        return " ".join(capsys.readouterr().out.split())

    [answer] = json.loads(printed(json=True))
    assert [match["identity"] for match in answer["matches"]] == ["anna"]
    assert answer["apart"]["count"] == 7
    assert answer["apart"]["people"][0] == {"id": 1, "path": "wall0.jpg", "identity": "bert"}
    assert "in both: 7 (bert (wall0.jpg), bert (wall1.jpg), " in printed()
    assert "in both: 7" in printed(visibility="authors", metric="cosine")
    assert "in both" not in printed(visibility="ignore")
    assert "in both" not in printed(filter="identity = 'anna'")
    assert "nobody to compare with" in printed(filter="identity = 'carl'")


def test_a_gallery_refuses_other_weights(world: Path, tmp_path: Path) -> None:
    add(world / "photos", gallery=tmp_path / "g", weights=world / "w.safetensors")
    weights.save(HPNet(ModelConfig("resnet18", "compact", size=SIZE)), tmp_path / "other.safetensors")
    with pytest.raises(GalleryError, match="weights"):
        search(world / "photos" / "1_1.png", gallery=tmp_path / "g", weights=tmp_path / "other.safetensors")


def test_compare_says_same_different_or_neither(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = world / "photos" / "1_1.png", world / "photos" / "3_2.png"
    embedder = Embedder(world / "w.safetensors")
    between = float(part_distance(embedder(one), embedder(other)))
    assert compare(one, one, weights=world / "w.safetensors", json=True) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["verdict"] == "same"
    assert same["threshold"] == 0.05
    compare(one, other, weights=world / "w.safetensors", threshold=between / 2, json=True)
    different = json.loads(capsys.readouterr().out)
    assert different["verdict"] == "different"
    assert different["distance"] == pytest.approx(between, abs=1e-3)
    torch.manual_seed(0)
    blind = ModelConfig("resnet18", "compact", parsing_channels=8, size=SIZE, threshold=0.999)
    weights.save(HPNet(blind), tmp_path / "blind.safetensors", training={"same_below": 0.05})
    compare(one, one, weights=tmp_path / "blind.safetensors", json=True)
    assert json.loads(capsys.readouterr().out) == {
        "verdict": "not comparable", "distance": None, "threshold": 0.05, "parts": {},
    }  # fmt: skip


def test_compare_without_a_measured_threshold_asks_for_one(world: Path, tmp_path: Path) -> None:
    weights.save(HPNet(ModelConfig("resnet18", "compact", size=SIZE)), tmp_path / "w.safetensors")
    photo = world / "photos" / "1_1.png"
    with pytest.raises(ValueError, match="threshold"):
        compare(photo, photo, weights=tmp_path / "w.safetensors")


# --- probabilities


@pytest.fixture(scope="module")
def calibrated(world: Path) -> Path:
    """The same weights with a curve for each pattern of parts: even at 0.02 for the whole, at 0.01 for less."""
    curves = {f"{number:04b}": Curve(2.0, 200.0, 100, 100) for number in range(1, 16)}
    curves["1111"] = Curve(4.0, 200.0, 100, 100)
    told = {"same_below": 0.05, "calibration": Calibration(4, curves).as_record()}
    weights.with_training(world / "w.safetensors", world / "calibrated.safetensors", told)
    return world / "calibrated.safetensors"


def test_compare_says_how_likely_it_is(world: Path, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = world / "photos" / "1_1.png"

    def said(**options: Any) -> Any:
        compare(one, one, weights=calibrated, **options)
        printed = capsys.readouterr().out
        return json.loads(printed) if options.get("json") else printed

    answer = said(json=True)
    known = 4 if len(answer["parts"]) == 4 else 2
    assert answer["verdict"] == "same"
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(-known)), abs=1e-3)
    assert answer["threshold"] == pytest.approx(known / 200), "of these parts, and not the one of all"
    rare = said(json=True, prior=0.001)
    assert rare["verdict"] == "different"
    assert rare["probability"] < 0.1
    assert said(json=True, prior=0.001, threshold=0.1)["verdict"] == "same"
    assert re.match(rf"same: P\(same\) {100 * answer['probability']:.1f} %, distance 0.000, the same below", said())


def test_what_cannot_be_compared_has_no_probability(
    calibrated: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = ModelConfig("resnet18", "compact", parsing_channels=8, size=SIZE, threshold=0.999)
    told = weights.read_header(calibrated).training
    weights.save(HPNet(blind), tmp_path / "blind.safetensors", training=told)
    photo = world / "photos" / "1_1.png"
    compare(photo, photo, weights=tmp_path / "blind.safetensors", json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["probability"], answer["threshold"]) == ("not comparable", None, None)


def test_search_says_how_likely_each_is(
    world: Path, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A gallery made before its weights were calibrated is still theirs.
    gallery, query = tmp_path / "people", world / "photos" / "2_1.png"
    add(world / "people.csv", gallery=gallery, weights=world / "w.safetensors")
    capsys.readouterr()

    def matches(**options: Any) -> list[dict[str, Any]]:
        search(query, gallery=gallery, weights=calibrated, json=True, **options)
        [answer] = json.loads(capsys.readouterr().out)
        found: list[dict[str, Any]] = answer["matches"]
        return found

    calibration = calibration_of(weights.read_header(calibrated).training, "")
    assert calibration is not None
    for options, prior in (({}, 1 / 7), ({"prior": 0.25}, 0.25)):
        for match in matches(**options):
            parts = [Part[name] for name in match["parts"]]
            assert match["prior"] == pytest.approx(prior)
            assert match["probability"] == pytest.approx(calibration.probability(match["distance"], parts, prior))
    for options in ({"visibility": "query"}, {"metric": "cosine"}):
        assert all("probability" not in match for match in matches(**options)), "another distance than the fitted one"
    search(query, gallery=gallery, weights=calibrated, prior=0.25, report=tmp_path / "page")
    printed = capsys.readouterr().out
    assert "P(same)" in printed
    assert "a prior of 0.25" in " ".join(printed.split())
    assert "P(same) " in (tmp_path / "page" / "report.html").read_text()
    search(query, gallery=gallery, weights=world / "w.safetensors")
    assert "P(same)" not in capsys.readouterr().out


def test_search_ranked_by_probability(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A head alone, exactly alike, is nearest; whoever shows all is likelier by these curves.
    curves = {f"{number:04b}": Curve(0.0, 1.0, 100, 100) for number in range(1, 16)}
    told = {"calibration": Calibration(4, {**curves, "1111": Curve(9.0, 1.0, 100, 100)}).as_record()}
    weights.with_training(world / "w.safetensors", tmp_path / "w.safetensors", told)
    photo, other = world / "photos" / "1_1.png", world / "photos" / "3_2.png"
    embedder = Embedder(tmp_path / "w.safetensors")
    seen = embedder(photo)
    assert bool(seen.visibility.all())
    head = PartFeatures(seen.features, torch.tensor([[True, False, False, False]]))
    gallery = Gallery.create(tmp_path / "people", embedder.fingerprint)
    gallery.add(PartFeatures.concatenate([head, embedder(other)]), [photo, other], identities=["head", "whole"])

    def printed(**options: Any) -> str:
        assert search(photo, gallery=gallery.path, weights=tmp_path / "w.safetensors", **options) == 0
        return " ".join(capsys.readouterr().out.split())

    for rank, expected in (("distance", ["head", "whole"]), ("probability", ["whole", "head"])):
        [answer] = json.loads(printed(rank=rank, json=True))
        assert [match["identity"] for match in answer["matches"]] == expected
        assert answer["ranked_by"] == rank
        page = tmp_path / rank
        assert f"ranked by {'distance' if rank == 'distance' else 'P(same)'}" in printed(rank=rank, report=page)
        text = (page / "report.html").read_text()
        assert text.index(f"{expected[0]} (") < text.index(f"{expected[1]} ("), "the report follows the order"
    chances = [match["probability"] for match in json.loads(printed(rank="probability", json=True))[0]["matches"]]
    assert chances == sorted(chances, reverse=True)
    [alone] = json.loads(printed(rank="probability", k=1, parts=["HEAD"], json=True))
    assert [match["identity"] for match in alone["matches"]] == ["head"], "by the head alone the nearest is likeliest"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("w", {}, "rank: .*w.safetensors carries no probabilities; hpnet calibrate fits them"),
        ("calibrated", {"metric": "cosine"}, "rank: no probability goes with cosine and common: hpnet calibrate"),
        ("calibrated", {"visibility": "authors"}, "rank: no probability goes with euclidean and authors"),
    ],
)
@pytest.mark.usefixtures("calibrated")
def test_no_probability_to_rank_by(name: str, options: dict[str, Any], said: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        search(world / "p.png", gallery=tmp_path, weights=world / f"{name}.safetensors", rank="probability", **options)


@pytest.mark.parametrize(("options", "said"), [({"prior": 1.5}, "prior must lie"), ({"prior": 0.0}, "prior must lie")])
def test_a_prior_that_is_none(
    options: dict[str, Any], said: str, world: Path, calibrated: Path, tmp_path: Path
) -> None:
    add(world / "photos", gallery=tmp_path / "g", weights=calibrated)
    photo = world / "photos" / "1_1.png"
    with pytest.raises(ValueError, match=said):
        search(photo, gallery=tmp_path / "g", weights=calibrated, **options)
    with pytest.raises(ValueError, match="tell no probabilities by this distance"):
        search(photo, gallery=tmp_path / "g", weights=world / "w.safetensors", prior=0.5)
    with pytest.raises(ValueError, match="prior must lie"):
        compare(photo, photo, weights=calibrated, **options)
    with pytest.raises(ValueError, match="tell no probabilities"):
        compare(photo, photo, weights=world / "w.safetensors", prior=0.5)
