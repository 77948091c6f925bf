from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpnet.data.transforms import Augmentation
from hpnet.model import ModelConfig
from hpnet.training.recipe import Recipe, RecipeError, RunRecipe, read_recipe
from hpnet.training.teach import TeacherRecipe

LEAST = "reid: data\nout: runs/a\npart_maps: data/part_maps\n"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *words: str, overrides: tuple[str, ...] = ()) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    for word in (path.name, *words):
        assert word in line


def test_defaults_are_the_papers(written: Callable[..., Path]) -> None:
    """Section 4.1 and Eq. 3, 10, written out."""
    recipe = read_recipe(written(LEAST))
    assert (recipe.reid, recipe.out, recipe.part_maps) == (Path("data"), Path("runs/a"), Path("data/part_maps"))
    assert recipe.model.trunk == "resnet50"
    assert recipe.model.size == (384, 128)
    assert (recipe.epochs, recipe.rate_drops, recipe.schedule, recipe.warmup_epochs) == (300, (240,), "step", 0)
    assert (recipe.identities_per_batch, recipe.images_per_identity, recipe.human_batch) == (16, 4, 32)
    assert (recipe.learning_rate, recipe.new_layer_rate) == (0.01, 0.02)
    assert (recipe.momentum, recipe.weight_decay, recipe.margin) == (0.9, 5e-4, 0.3)
    weights = (recipe.weight_identity, recipe.weight_triplet, recipe.weight_parsing, recipe.weight_human)
    assert weights == (1, 0.1, 1, 1)
    assert (recipe.identity_average, recipe.parsing_average) == ("batch", "image")
    assert recipe.augmentation == Augmentation(flip=0.5, colour=0.0, occlusion=0.0)
    assert (recipe.optimiser, recipe.alternate, recipe.parsing_only_epochs) == ("sgd", False, 0)


def test_values_come_from_the_file_and_then_from_the_command_line(written: Callable[..., Path]) -> None:
    path = written(
        LEAST + "epochs: 7\nlearning_rate: 1e-3\nweight_decay: 0\nrate_drops: [3, 5]\nhuman_set: pascal\n"
        "human_root: pascal\nmodel:\n  trunk: resnet18\n  size: [64, 32]\n  mean: [0, 0.5, 1]\n"
        "augmentation:\n  flip: 0\n  occlusion: 0.5\n"
    )
    recipe = read_recipe(path)
    assert (recipe.epochs, recipe.learning_rate, recipe.weight_decay, recipe.rate_drops) == (7, 0.001, 0.0, (3, 5))
    assert recipe.model == ModelConfig(trunk="resnet18", size=(64, 32), mean=(0.0, 0.5, 1.0))
    assert recipe.augmentation == Augmentation(flip=0.0, occlusion=0.5)
    assert recipe.has_human_stream
    overridden = read_recipe(
        path, ["--epochs", "9", "--model.trunk=resnet34", "--alternate", "true", "--part_maps", "elsewhere"]
    )
    expected = replace(
        recipe, epochs=9, model=replace(recipe.model, trunk="resnet34"), alternate=True, part_maps=Path("elsewhere")
    )
    assert overridden == expected


def test_a_written_recipe_reads_back_as_itself(written: Callable[..., Path]) -> None:
    recipe = Recipe(
        reid=Path("a b/Straße"),
        out=Path("o"),
        model=ModelConfig(trunk="resnet18", baseline=True, size=(64, 32), std=(1e-7, 0.5, 1.0)),
        augmentation=Augmentation(0.1, 0.2, 0.3),
        rate_drops=(1, 2, 3),
        learning_rate=1e-8,
        device="cpu",
        initial=Path("weights.pth"),
        schedule="cosine",
    )
    assert read_recipe(written(recipe.as_text())) == recipe
    assert set(yaml.safe_load(recipe.as_text())) == {field.name for field in fields(Recipe)}


def test_brackets_in_a_path_are_no_pattern(written: Callable[..., Path]) -> None:
    assert read_recipe(written(LEAST + "epochs: 5\n", "runs [new]*/recipe?.yaml")).epochs == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red\n", ["colour"]),
        ("model:\n  depth: 3\n", ["depth"]),
        ("augmentation: {flips: 0.5}\n", ["flips"]),
        ("epochs: many\n", ["epochs", "many"]),
        ("epochs: 2.5\n", ["epochs", "2.5"]),
        ("model: {trunk: resnet19}\n", ["trunk", "resnet19"]),
        ("model: {size: [64]}\n", ["size"]),
        ("schedule: linear\n", ["schedule", "linear"]),
        ("alternate: maybe\n", ["alternate", "maybe"]),
        ("rate_drops: soon\n", ["rate_drops", "soon"]),
        ("epochs: 0\n", ["epochs"]),
        ("human_batch: 0\n", ["human_batch"]),
        ("identities_per_batch: 0\n", ["identities_per_batch"]),
        ("validation_identities: -1\n", ["validation_identities"]),
        ("augmentation: {flip: 2}\n", ["flip", "2"]),
        ("model: {share_conv5: true, baseline: true}\n", ["share_conv5", "baseline"]),
        ("model: {baseline: true}\nparsing_only_epochs: 3\n", ["parsing_only_epochs"]),
        ("human_set: pascal\n", ["human_root"]),
        ("human_set: cityscapes\n", ["human_set", "cityscapes"]),
        ("part_maps: null\n", ["part_maps"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, words: list[str], written: Callable[..., Path]) -> None:
    least = LEAST.replace("part_maps: data/part_maps\n", "") if text.startswith("part_maps") else LEAST
    refused(written(least + text), *words)


def test_missing_values_are_named(written: Callable[..., Path]) -> None:
    refused(written("out: a\npart_maps: b\n"), "reid")
    refused(written("reid: a\npart_maps: b\n"), "out")


def test_overrides_are_checked_too(written: Callable[..., Path]) -> None:
    path = written(LEAST)
    refused(path, "--colour", overrides=("--colour", "red"))
    refused(path, "model.depth", overrides=("--model.depth", "3"))
    refused(path, "epochs", "many", overrides=("--epochs", "many"))
    refused(path, "epochs", overrides=("--epochs",))
    refused(path, "stray", overrides=("stray",))


@pytest.mark.parametrize(
    "text", ["", "just words", "- a\n- b\n", "a: [1\n", "a: b: c\n", "3"], ids=["empty", "text", "list", "[", "::", "3"]
)
def test_a_file_that_is_no_recipe_is_named(text: str, written: Callable[..., Path]) -> None:
    refused(written(text))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "gone.yaml", "no such recipe")
    refused(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    refused(tmp_path / "picture.yaml")


# --- based_on


def test_a_recipe_says_only_what_differs(written: Callable[..., Path]) -> None:
    written(LEAST + "epochs: 10\nseed: 1\nmodel: {trunk: resnet18, threshold: 0.4}\n", "most/basic.yaml")
    written("based_on: most/basic.yaml\nepochs: 20\nmodel: {threshold: 0.3}\n", "middle.yaml")
    top = written("based_on: ../middle.yaml\nmodel:\n  share_conv5: true\n", "top/top.yaml")
    recipe = read_recipe(top, ["--seed", "3"])
    assert (recipe.epochs, recipe.seed) == (20, 3)
    assert recipe.model == ModelConfig(trunk="resnet18", threshold=0.3, share_conv5=True)


def test_a_fault_below_is_found(written: Callable[..., Path]) -> None:
    written(LEAST + "colour: red\n", "basic.yaml")
    refused(written("based_on: basic.yaml\n", "top.yaml"), "colour")
    refused(written("based_on: gone.yaml\n", "top.yaml").with_name("gone.yaml"), overrides=())
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such recipe"):
        read_recipe(written("based_on: gone.yaml\n", "top.yaml"))


@pytest.mark.parametrize("way", ["b.yaml", "../{here}/b.yaml"])
def test_a_circle_is_found(way: str, written: Callable[..., Path], tmp_path: Path) -> None:
    written("based_on: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match="based_on itself"):
        read_recipe(written(f"based_on: {way.format(here=tmp_path.name)}\n", "a.yaml"))
    with pytest.raises(RecipeError, match="based_on itself"):
        read_recipe(written("based_on: self.yaml\n", "self.yaml"))


# --- conflicts


def test_where_a_run_is_kept_is_no_conflict(tiny: Callable[..., Recipe]) -> None:
    moved = replace(tiny(), out=Path("elsewhere"), device="cpu", checkpoint_minutes=1.0)
    assert moved.conflicts(tiny()) == []


def test_conflicts_are_listed_one_by_one(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny()
    assert recipe.conflicts(tiny()) == []
    other: Any = replace(
        recipe, epochs=9, out=Path("elsewhere"), model=replace(recipe.model, trunk="resnet34"), rate_drops=(1, 2)
    )
    assert other.conflicts(recipe) == [
        "epochs: 3 -> 9",
        "rate_drops: [240] -> [1, 2]",
        "model.trunk: 'resnet18' -> 'resnet34'",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"human_set": "pascal", "human_root": Path("p")}, True),
        ({"human_set": "pascal", "human_root": Path("p"), "weight_human": 0.0}, False),
        ({"human_set": "pascal", "human_root": Path("p"), "model": ModelConfig(baseline=True)}, False),
    ],
)
def test_when_there_is_a_second_stream(changes: dict[str, Any], expected: bool, tiny: Callable[..., Recipe]) -> None:
    assert tiny(**changes).has_human_stream is expected


def test_shipped_recipes_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    for path in sorted(folder.glob("*.yaml")):
        kind: type[RunRecipe] = TeacherRecipe if path.name.startswith("teacher") else Recipe
        assert read_recipe(path, ["--out", "runs/test"], kind).epochs > 0, path.name
