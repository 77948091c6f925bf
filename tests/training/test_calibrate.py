"""hpnet calibrate: whom it takes, what it writes, and what it leaves as it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hpnet import weights
from hpnet.calibration import calibration_of
from hpnet.data.occlusion import occlude
from hpnet.data.reid import read_split
from hpnet.files import fingerprint
from hpnet.model import ModelConfig
from hpnet.training.calibrate import calibrate
from hpnet.training.recipe import Recipe
from hpnet.training.train import fit, setup


@pytest.fixture(scope="module")
def trained(dolls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one epoch on five of eight identities; the last three were kept out."""
    recipe = Recipe(
        reid=dolls,
        part_maps=dolls / "part_maps",
        out=tmp_path_factory.mktemp("trained") / "run",
        model=ModelConfig("resnet18", "compact", size=(64, 32), parsing_channels=8, threshold=0.1),
        epochs=1,
        identities_per_batch=4,
        images_per_identity=2,
        validation_identities=3,
        device="cpu",
    )
    fit(setup(recipe, quiet=True), quiet=True)
    return recipe.out / "weights.safetensors"


def plain(trained: Path, out: Path, *left_out: str) -> Path:
    """The same weights without their calibration, and without other things that training told."""
    told = weights.read_header(trained).training
    weights.with_training(
        trained, out, {name: each for name, each in told.items() if "calibration" not in name and name not in left_out}
    )
    return out


def test_it_gives_what_training_would_have_given(trained: Path, dolls: Path, tmp_path: Path) -> None:
    path = plain(trained, tmp_path / "w.safetensors")
    before = weights.read_header(path).training
    assert calibration_of(before, path) is None
    assert calibrate(path, reid=dolls, device="cpu") == 0
    after = weights.read_header(path).training
    assert after == weights.read_header(trained).training
    assert {name: after[name] for name in before} == before
    assert fingerprint(path) == fingerprint(trained)


def test_the_folder_above_hides_nobody(trained: Path, dolls: Path, tmp_path: Path) -> None:
    """Whether training has seen people does not hang on how their folder is named."""
    path = plain(trained, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="has seen the others"):
        calibrate(path, reid=dolls.parent, validation_identities=8, device="cpu")
    assert calibrate(path, reid=dolls.parent, device="cpu") == 0
    assert weights.read_header(path).training == weights.read_header(trained).training


def test_another_file_may_be_written(
    trained: Path, dolls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = trained.read_bytes()
    calibrate(trained, reid=dolls, out=tmp_path / "new.safetensors", device="cpu", json=True)
    record = json.loads(capsys.readouterr().out)
    header = weights.read_header(tmp_path / "new.safetensors")
    assert header.training["calibration"] == record["calibration"]
    assert trained.read_bytes() == content
    calibrate(trained, reid=dolls, out=tmp_path / "new.safetensors", device="cpu")
    printed = " ".join(capsys.readouterr().out.split())
    assert "head, torso, upper legs, lower legs" in printed
    assert "fitted on validation identities: 3" in printed


def test_people_from_elsewhere_are_all_taken(trained: Path, dolls: Path, tmp_path: Path) -> None:
    with (tmp_path / "people.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "identity"])
        rows.writerows([person.path, f"who{person.identity}"] for person in read_split("market1501", dolls, "gallery"))
    out = tmp_path / "new.safetensors"
    calibrate(trained, reid=tmp_path / "people.csv", validation_identities=99, out=out, device="cpu")
    told = weights.read_header(out).training
    assert told["calibration_from"] == "identities of people.csv: 4"
    assert told["calibration_error"] is not None


def test_occluded_copies_of_them_count_too(trained: Path, dolls: Path, tmp_path: Path) -> None:
    maps, copies, out = dolls / "part_maps", tmp_path / "copies", tmp_path / "new.safetensors"
    occlude(dolls, copies, part_maps=maps, held_out=3, kinds=("frame",))
    calibrate(trained, reid=dolls, occluded=copies, out=out, device="cpu")
    told, before = (weights.read_header(each).training for each in (out, trained))
    assert told["calibration_from"] == "validation identities, with 6 occluded copies: 3"
    assert told["calibration"] != before["calibration"]


@pytest.mark.parametrize("held_out", [0, 4])
def test_copies_of_others_are_refused(held_out: int, trained: Path, dolls: Path, tmp_path: Path) -> None:
    occlude(dolls, tmp_path / "copies", part_maps=dolls / "part_maps", held_out=held_out, kinds=("frame",))
    with pytest.raises(ValueError, match="no copy of somebody to calibrate on"):
        calibrate(trained, reid=dolls, occluded=tmp_path / "copies", out=tmp_path / "w.safetensors", device="cpu")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("count", "left_out", "said"),
    [
        (4, (), "training kept out 3, and has seen the others"),
        (0, (), "must be at least 1, not 0"),
        (None, ("recipe",), "give --validation_identities"),
        (None, ("reid_hash",), "give --validation_identities"),
    ],
)
def test_who_was_trained_on_is_refused(
    count: int | None, left_out: tuple[str, ...], said: str, trained: Path, dolls: Path, tmp_path: Path
) -> None:
    path = plain(trained, tmp_path / "w.safetensors", *left_out)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        calibrate(path, reid=dolls, validation_identities=count, device="cpu")
    assert path.read_bytes() == content


def test_one_person_is_too_few(trained: Path, dolls: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pairs of one person and of two"):
        calibrate(trained, reid=dolls, validation_identities=1, out=tmp_path / "w.safetensors", device="cpu")
    assert not list(tmp_path.iterdir())


def test_bundled_weights_stay_as_they_are(dolls: Path) -> None:
    with pytest.raises(ValueError, match="give --out"):
        calibrate(Path("compact"), reid=dolls)
