from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_length

from hpnet.data.synthetic import draw
from hpnet.data.transforms import Augmentation
from hpnet.parts import PARTS
from hpnet.training.recipe import RecipeError, read_recipe
from hpnet.training.teach import (
    NAMES,
    TeacherRecipe,
    TeacherRun,
    coarsened,
    fit,
    intersection_over_union,
    predicted,
    setup,
    teach,
)
from hpnet.training.teacher import TeacherConfig, load_teacher

Make = Callable[..., TeacherRecipe]


@pytest.fixture
def small(pascal: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> TeacherRecipe:
        settings: dict[str, Any] = {
            "human_set": "pascal",
            "human_root": pascal,
            "out": tmp_path / "teacher",
            "model": TeacherConfig(trunk="resnet18", layer4=False, size=(64, 32)),
            "augmentation": Augmentation(flip=0.5),
            "batch": 4,
            "epochs": 2,
            "device": "cpu",
        }
        return TeacherRecipe(**(settings | changes))

    return make


def started(recipe: TeacherRecipe, *, resume: bool = False) -> TeacherRun:
    return setup(recipe, resume=resume, quiet=True)


def test_a_finished_run_leaves_weights_scores_and_a_sheet(small: Make) -> None:
    run = started(small())
    assert run.steps == 4
    assert fit(run, quiet=True) == 4
    model, header = load_teacher(run.recipe.out / "weights.safetensors")
    scores = json.loads((run.recipe.out / "scores.json").read_text())
    assert header.training["iou"] == scores["iou"]
    assert set(scores["iou"]) == {*NAMES, "mean", "mean_parts"}
    assert scores["held_out_images"] == 3
    assert scores["human_images"] == 8
    assert len(scores["human_hash"]) == 64
    again = intersection_over_union(run.held_out.part_maps, predicted(model, run.held_out.photos))
    assert again == scores["iou"]
    with Image.open(run.recipe.out / "held_out.jpg") as sheet:
        assert sheet.width > 9 * 32
    assert len((run.recipe.out / "log.jsonl").read_text().splitlines()) == 4


def densepose_split(root: Path, split: str, seeds: range) -> None:
    """Drawn people as DensePose-COCO has them: a photo each, masks run-length coded on 256 x 256 cells of the box."""
    folder = root / f"{split}2014"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in seeds:
        drawing, name = draw(number, 0, 0, seed=5, size=(128, 64)), f"COCO_{split}2014_{number:012d}.jpg"
        Image.fromarray(drawing.photo.permute(1, 2, 0).numpy()).save(folder / name, quality=95)
        cells = np.asarray(Image.fromarray(drawing.part_map.numpy()).resize((256, 256), Image.Resampling.NEAREST))
        masks: list[Any] = [[] for _ in range(14)]
        for part, label in zip(PARTS, (14, 1, 6, 8), strict=True):  # head, torso, a thigh, a shin
            encoded = run_length.encode(np.asfortranarray((cells == part.label).astype(np.uint8)))
            masks[label - 1] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
        images.append({"id": number, "file_name": name, "height": 128, "width": 64})
        person = {"id": number, "image_id": number, "bbox": [0, 0, 64, 128], "keypoints": [5, 5, 2] * 17}
        annotations.append({**person, "dp_masks": masks})
    (root / "annotations").mkdir(exist_ok=True)
    list_name = {"train": "train", "val": "minival"}[split]
    record = {"images": images, "annotations": annotations, "categories": []}
    (root / "annotations" / f"densepose_coco_2014_{list_name}.json").write_text(json.dumps(record))


def test_the_papers_teacher_learns_from_densepose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe as it is shipped, but for a small trunk and few steps, on drawn people in the real format."""
    root, out = tmp_path / "densepose_coco", tmp_path / "teacher"
    densepose_split(root, "train", range(8))
    densepose_split(root, "val", range(8, 11))
    recipe = Path(__file__).parents[2] / "recipes" / "teacher_densepose.yaml"
    small_one = ["--initial", "null", "--model.trunk", "resnet18", "--model.size", "[64,32]", "--device", "cpu"]
    words = ["--human_root", str(root), "--out", str(out), "--batch", "4", "--epochs", "2", *small_one]
    assert teach(recipe, *words, json=True) == 0
    capsys.readouterr()
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["human"], scores["human_images"], scores["held_out_images"]) == ("densepose", 8, 3)
    assert all(0 <= value <= 1 for value in scores["iou"].values())
    run = started(
        TeacherRecipe(**(vars(read_recipe(out / "recipe.yaml", kind=TeacherRecipe)) | {"out": out / "again"}))
    )
    assert {int(label) for label in run.train.part_maps.unique()} == {0, 1, 2, 3, 4}


def test_every_crop_comes_with_every_margin(small: Make) -> None:
    run = started(small(margins=(0.0, 0.2)))
    assert len(run.train.photos) == 16
    tight, loose = run.train.part_maps[:8] > 0, run.train.part_maps[8:] > 0
    assert bool((tight.flatten(1).sum(1) > loose.flatten(1).sum(1)).all())
    assert len(run.held_out.photos) == 3


def test_it_learns_to_find_parts(small: Make) -> None:
    recipe = small(epochs=20, optimiser="adam", learning_rate=0.002, new_layer_rate=0.004, schedule="cosine")
    run = started(replace(recipe, augmentation=Augmentation(flip=0.0)))
    before = intersection_over_union(run.held_out.part_maps, predicted(run.model, run.held_out.photos))
    fit(run, quiet=True)
    after = json.loads((recipe.out / "scores.json").read_text())["iou"]
    assert (before["mean_parts"] or 0) < 0.25
    assert after["mean_parts"] > 0.5


def test_stopped_and_resumed_is_as_never_stopped(small: Make, tmp_path: Path) -> None:
    whole = small(out=tmp_path / "whole", augmentation=Augmentation(flip=0.5, colour=0.5), scale=0.5)
    fit(started(whole), quiet=True)
    halves = replace(whole, out=tmp_path / "halves")
    assert fit(started(halves), stop_before=3, quiet=True) == 3
    assert not (halves.out / "weights.safetensors").exists()
    assert fit(started(halves, resume=True), quiet=True) == 4
    one, other = (load_teacher(each.out / "weights.safetensors")[0].state_dict() for each in (whole, halves))
    assert all(torch.equal(each, other[name]) for name, each in one.items())


def test_the_verb_runs_and_refuses_a_folder_in_use(
    small: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(small(epochs=1).as_text())
    assert teach(path, json=True) == 0
    assert "mean_parts" in json.loads(capsys.readouterr().out)["iou"]
    with pytest.raises(RecipeError, match="the run folder is not empty"):
        teach(path)
    assert teach(path, "--out", str(tmp_path / "table")) == 0
    assert "upper legs" in capsys.readouterr().out


def test_intersection_over_union_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 1, 1], [2, 2, 3, 3]]], dtype=torch.uint8)
    found = torch.tensor([[[0, 1, 1, 1], [2, 3, 3, 3]]], dtype=torch.uint8)
    scores = intersection_over_union(truth, found)
    expected = {"background": 1 / 2, "head": 2 / 3, "torso": 1 / 2, "upper_legs": 2 / 3, "lower_legs": None}
    assert {name: scores[name] for name in NAMES} == expected
    assert scores["mean"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2 + 2 / 3) / 4)
    assert scores["mean_parts"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)


def test_coarsening_loses_details_and_keeps_the_size() -> None:
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(16, 8).expand(2, 3, 32, 16)
    same = coarsened(checks, 1.0, torch.Generator())
    assert torch.equal(same, checks)
    coarse = coarsened(checks, 0.25, torch.Generator().manual_seed(0))
    assert coarse.shape == checks.shape
    assert float(coarse.std()) < float(checks.std())


@pytest.mark.parametrize(
    ("change", "told"),
    [({"batch": 0}, "batch must be at least 1"), ({"scale": 0.0}, "scale must be above 0"), ({"epochs": 0}, "epochs")],
)
def test_impossible_recipes_are_named(change: dict[str, Any], told: str, small: Make) -> None:
    with pytest.raises(RecipeError, match=told):
        small(**change)
