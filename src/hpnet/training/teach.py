"""Train the teacher on human part labels: `hpnet teach`.

In: a recipe and Pascal-Person-Part or DensePose-COCO. Out: a run folder (`run.py`) with the teacher's weights,
`scores.json` (intersection over union on held-out crops, per part), and a contact sheet of photo, truth, prediction.
"""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from rich.table import Table
from torch import Tensor

from hpnet.console import say
from hpnet.data.parsing import MARGIN, parsing_hash
from hpnet.data.sampler import generator_for
from hpnet.data.transforms import Augmentation, augment
from hpnet.files import write_json
from hpnet.parts import PARTS
from hpnet.training.batches import Labelled, ParsingBatch, human_labelled
from hpnet.training.recipe import DENSEPOSE_TRAIN, RecipeError, RunRecipe, read_recipe
from hpnet.training.run import (
    INTERRUPTED,
    Run,
    as_numbers,
    autocast,
    average_of,
    backward,
    check_folder,
    device_for,
    go,
    open_folder,
    optimiser_for,
    set_rates,
    start_from_imagenet,
)
from hpnet.training.teacher import CLASSES, Teacher, TeacherConfig, probabilities, save_teacher, teacher_loss
from hpnet.visualize import contact_sheet, overlay

NAMES: Final = ("background", *(part.name.lower() for part in PARTS))
_SHOWN: Final = 24  # held-out crops on the contact sheet
_CROPS_AT_ONCE: Final = 32


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(RunRecipe):
    """How the teacher is trained.

    Attributes:
        human_set: which human-labelled parsing set.
        human_root: its folder.
        human_annotations: DensePose-COCO's annotation file to train on, below human_root.
        human_photos: COCO's folder of the photos, below human_root.
        validation_annotations: DensePose-COCO's annotation file to judge by, below human_root.
        validation_photos: COCO's folder of those photos. (Of Pascal-Person-Part, `val_id.txt` judges.)
        model: the network.
        augmentation: how crops are varied.
        margins: each training crop is taken once with every margin (share of the person's height), Pascal-Person-Part
            only. Detectors leave more room than labels do; a teacher that saw tight crops alone expects every head at
            the top.
        scale: crops are shrunk to a share between this and 1 of their size and enlarged again, so that sharp photos
            resemble those of distant cameras; 1 leaves them as they are.
        batch: crops in a step.
    """

    human_set: Literal["pascal", "densepose"] = "densepose"
    human_root: Path
    human_annotations: str = DENSEPOSE_TRAIN
    human_photos: str = "train2014"
    validation_annotations: str = "annotations/densepose_coco_2014_minival.json"
    validation_photos: str = "val2014"
    model: TeacherConfig = field(default_factory=TeacherConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    margins: tuple[float, ...] = (MARGIN,)
    scale: float = 1.0
    batch: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "batch")
        if not self.margins or min(self.margins) < 0:
            raise RecipeError(f"margins must be one or more shares of at least 0, not {self.margins}")
        if not 0 < self.scale <= 1:
            raise RecipeError(f"scale must be above 0 and at most 1, not {self.scale}")


@dataclass(frozen=True)
class TeacherRun(Run):
    """A run that learns body parts from human labels.

    Attributes:
        train: crops to learn from.
        held_out: crops to judge by.
    """

    recipe: TeacherRecipe
    model: Teacher
    train: Labelled
    held_out: Labelled


def teach(recipe: Path, *overrides: str, resume: bool = False, json: bool = False) -> int:
    """Train a teacher by a recipe, and judge it on held-out crops.

    Args:
        recipe: a YAML file, such as recipes/teacher_pascal.yaml.
        overrides: --key value, for every key of the recipe.
        resume: go on from the run folder's checkpoint.
        json: print the scores as JSON instead of a table.
    """
    run = setup(read_recipe(recipe, overrides, TeacherRecipe), resume=resume)
    if fit(run) < run.steps:
        say(f"stopped before step {run.steps}; go on with --resume")
        return INTERRUPTED
    record = json_format.loads((run.recipe.out / "scores.json").read_text(encoding="utf-8"))
    say(json_format.dumps(record) if json else _table(record))
    return 0


def setup(recipe: TeacherRecipe, *, resume: bool = False, quiet: bool = False) -> TeacherRun:
    """Read the crops, build the network, and make the run folder, or restore what a checkpoint holds.

    Raises:
        RecipeError: the run folder is not empty, or (resuming) holds no checkpoint or another recipe's.
        ParsingError: the set cannot be read.
    """
    check_folder(recipe, resume=resume)
    device = device_for(recipe)
    read = partial(human_labelled, recipe.human_set, recipe.human_root, recipe.model.size, quiet=quiet)
    margins = recipe.margins if recipe.human_set == "pascal" else (MARGIN,)
    crops = [read("train", recipe.human_annotations, recipe.human_photos, margin=each) for each in margins]
    train = Labelled(torch.cat([each.photos for each in crops]), torch.cat([each.part_maps for each in crops]))
    held_out = read("val", recipe.validation_annotations, recipe.validation_photos)
    torch.manual_seed(recipe.seed)
    model = Teacher(recipe.model)
    if not resume:
        start_from_imagenet(model, recipe, train.photos)
    model.to(device)
    optimiser = optimiser_for(recipe, model.parameter_groups())
    if not resume:
        open_folder(recipe)
    steps = max(1, len(train.photos) // recipe.batch)
    average = average_of(recipe, model)
    return TeacherRun(recipe, model, optimiser, device, (0, 1), steps, train, held_out, average=average)


def fit(run: TeacherRun, *, stop_before: int | None = None, quiet: bool = False) -> int:
    """Train until the end, or until Ctrl-C; see `go`. The end judges, and writes weights, scores and sheet."""
    done = go(run, partial(_batches, run), partial(step, run), stop_before=stop_before, quiet=quiet)
    if done == run.steps:
        scores = intersection_over_union(run.held_out.part_maps, predicted(run.model, run.held_out.photos))
        record = {"iou": scores, **_provenance(run)}
        save_teacher(run.model, run.recipe.out / "weights.safetensors", record)
        write_json(run.recipe.out / "scores.json", record)
        _sheet(run).save(run.recipe.out / "held_out.jpg", quality=90)
    return done


def step(run: TeacherRun, number: int, batch: ParsingBatch) -> dict[str, float]:
    """One step; returns the loss by name."""
    set_rates(run, number)
    # Dropout takes its chance from the process; tied to the step, a run that was stopped goes on exactly.
    torch.manual_seed(generator_for(run.recipe.seed, "dropout", number).initial_seed())
    run.optimiser.zero_grad(set_to_none=True)
    with autocast(run):
        output = run.model(batch.image)
    loss = teacher_loss(output, batch.part_map)
    backward(loss)
    run.optimiser.step()
    return as_numbers(number, {"loss": loss})


def predicted(model: Teacher, photos: UInt8[Tensor, "n 3 H W"]) -> UInt8[Tensor, "n H W"]:
    """The part maps that a teacher gives photos of its input size."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        pieces = [
            probabilities(model(piece.to(device).float() / 255), model.config.size).argmax(1).to("cpu", torch.uint8)
            for piece in torch.split(photos, _CROPS_AT_ONCE)
        ]
    return torch.cat(pieces).clone()


def intersection_over_union(
    truth: UInt8[Tensor, "n H W"], prediction: UInt8[Tensor, "n H W"]
) -> dict[str, float | None]:
    """Over the pixels of all crops together, for background and each part; `mean` of all five, `mean_parts` of four.

    None where neither map shows the part anywhere; the means leave it out.
    """
    confusion = torch.bincount((truth.long() * CLASSES + prediction.long()).flatten(), minlength=CLASSES**2)
    confusion = confusion.view(CLASSES, CLASSES).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    values = (confusion.diag() / union).tolist()
    named = {name: None if math.isnan(value) else value for name, value in zip(NAMES, values, strict=True)}  # 0 / 0
    return {**named, "mean": _mean(named.values()), "mean_parts": _mean(list(named.values())[1:])}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _batches(run: TeacherRun, steps: range) -> Iterator[ParsingBatch]:
    """Each epoch goes once through the crops in its own order; a step's batch depends on seed and number alone."""
    recipe, epoch, order = run.recipe, -1, torch.empty(0, dtype=torch.int64)
    for number in steps:
        wanted, place = divmod(number, run.steps_per_epoch)
        if wanted != epoch:
            epoch, order = wanted, _order(len(run.train.photos), recipe.seed, wanted)
        rows = order[place * recipe.batch : (place + 1) * recipe.batch]
        chance = generator_for(recipe.seed, "teacher", number)
        photos, maps = (each[rows].to(run.device) for each in (run.train.photos, run.train.part_maps))
        image, part_map = augment(photos, maps, recipe.augmentation, chance, recipe.model.mean)
        yield ParsingBatch(coarsened(image, recipe.scale, chance), part_map)


def _order(count: int, seed: int, epoch: int) -> Int64[Tensor, " n"]:
    return torch.randperm(count, generator=generator_for(seed, "teacher order", epoch))


def coarsened(images: Float[Tensor, "b 3 H W"], least: float, generator: torch.Generator) -> Float[Tensor, "b 3 H W"]:
    """Shrink a batch to a random share of its size, at least `least`, and enlarge it again: details are lost."""
    share = least + (1 - least) * float(torch.rand(1, generator=generator))
    height, width = images.shape[2:]
    small = (max(1, round(height * share)), max(1, round(width * share)))
    if small == (height, width):
        return images
    shrunk = torch.nn.functional.interpolate(images, small, mode="bilinear", antialias=True, align_corners=False)
    return torch.nn.functional.interpolate(shrunk, (height, width), mode="bilinear", align_corners=False)


def _provenance(run: TeacherRun) -> dict[str, Any]:
    return {
        "human": run.recipe.human_set,
        "human_images": len(run.train.photos),
        "held_out_images": len(run.held_out.photos),
        "human_hash": parsing_hash(run.recipe.human_root),
        "steps": run.steps,
        "seed": run.recipe.seed,
        "recipe": run.recipe.as_text(),
    }


def _sheet(run: TeacherRun) -> Any:
    """Held-out crops, evenly spread: photo, truth, prediction."""
    rows = torch.linspace(0, len(run.held_out.photos) - 1, min(_SHOWN, len(run.held_out.photos))).long()
    photos, truth = run.held_out.photos[rows], run.held_out.part_maps[rows]
    shown: list[Tensor] = []
    for photo, *maps in zip(photos, truth, predicted(run.model, photos), strict=True):
        shown += [photo, *(overlay(photo, part_map, 0.6) for part_map in maps)]
    captions = ["photo", "truth", "prediction"] * len(rows)
    return contact_sheet(shown, columns=12, captions=captions, size=run.recipe.model.size)


def _table(record: dict[str, Any]) -> Table:
    table = Table(title=f"intersection over union, {record['held_out_images']} held-out crops, percent")
    scores: Sequence[tuple[str, float | None]] = list(record["iou"].items())
    for name, _ in scores:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*("" if value is None else f"{100 * value:.1f}" for _, value in scores))
    return table
