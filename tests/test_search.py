"""search and compare, end to end with a small untrained network: a photo must at least find itself."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from hpnet import weights
from hpnet.data.photos import write_picture
from hpnet.data.synthetic import draw
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.gallery import Gallery, GalleryError
from hpnet.ingest import add
from hpnet.model import HPNet, ModelConfig
from hpnet.parts import PartFeatures
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
