"""Train HPNet or the baseline (Section 3.2): two streams, two backward passes, one update per step.

In: a recipe. Out: a run folder (`run.py`) and in it `weights.safetensors`.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from hpnet import weights
from hpnet.calibration import KnownPeople
from hpnet.console import say
from hpnet.data.sampler import generator_for
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.evaluation.metrics import equal_error
from hpnet.model import HPNet
from hpnet.training.batches import ParsingBatch, ReIDBatch, TrainingData, batches_from, load_data
from hpnet.training.calibrate import calibration_record
from hpnet.training.losses import identity_loss, parsing_loss, triplet_loss
from hpnet.training.recipe import Recipe, read_recipe
from hpnet.training.run import (
    INTERRUPTED,
    Run,
    across_devices,
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
    share_of_work,
    start_from_imagenet,
    sum_gradients,
)

_PHOTOS_TO_COMPARE: Final = 1000


@dataclass(frozen=True)
class ReIDRun(Run):
    """A run that learns people.

    Attributes:
        data: all that it trains on.
    """

    recipe: Recipe
    model: HPNet
    data: TrainingData


def train(recipe: Path, *overrides: str, resume: bool = False, json: bool = False) -> int:
    """Train a model by a recipe.

    With several GPUs: torchrun --nproc-per-node N -m hpnet train RECIPE; each takes its share of every batch.

    Args:
        recipe: a YAML file, see the folder recipes.
        overrides: --key value, for every key of the recipe (--model.trunk resnet18 for nested ones).
        resume: go on from the run folder's checkpoint.
        json: print the result as JSON instead of a line.
    """
    run = setup(read_recipe(recipe, overrides), resume=resume)
    try:
        step = fit(run)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if run.leads:
        _report(run, step, json=json)
    return 0 if step == run.steps else INTERRUPTED


def setup(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> ReIDRun:
    """Read the data, build model and optimiser, and make the run folder, or restore what a checkpoint holds.

    Raises:
        RecipeError: the run folder is not empty, or (resuming) holds no checkpoint or another recipe's.
    """
    batches = {"identities_per_batch": recipe.identities_per_batch}
    share = share_of_work(**batches, **({"human_batch": recipe.human_batch} if recipe.has_human_stream else {}))
    leads = share[0] == 0
    if leads:
        check_folder(recipe, resume=resume)
    device = device_for(recipe)
    data = load_data(recipe, quiet=quiet or not leads)
    torch.manual_seed(recipe.seed)
    model = HPNet(replace(recipe.model, identities=data.identities))
    if not resume and recipe.initial is not None and weights.is_own(recipe.initial):
        weights.load_learnt(model, recipe.initial)
    elif not resume:
        start_from_imagenet(model, recipe, data.reid.photos)
    model = across_devices(model, device, share)
    if leads and not resume:
        open_folder(recipe)
    optimiser = optimiser_for(recipe, model.parameter_groups())
    return ReIDRun(
        recipe, model, optimiser, device, share, data.steps_per_epoch, data, average=average_of(recipe, model)
    )


def fit(run: ReIDRun, *, stop_before: int | None = None, quiet: bool = False) -> int:
    """Train until the end, or until Ctrl-C; see `go`. The end writes the weights."""
    done = go(
        run,
        lambda steps: batches_from(run.data, run.recipe, steps, run.device, run.share),
        lambda number, batch: step(run, number, *batch),
        stop_before=stop_before,
        quiet=quiet,
    )
    if done == run.steps and run.leads:
        weights.save(run.model, run.recipe.out / "weights.safetensors", training=_provenance(run))
    return done


def step(run: ReIDRun, number: int, reid: ReIDBatch, human: ParsingBatch | None) -> dict[str, float]:
    """One step: ReID batch forward and backward, human-labelled batch forward and backward, one update.

    Returns:
        The losses by name, before weighting.
    """
    recipe = run.recipe
    set_rates(run, number)
    run.optimiser.zero_grad(set_to_none=True)
    with autocast(run):
        losses = _reid_losses(run, number, reid)
    backward(torch.stack([weight * loss for weight, loss in losses.values()]).sum())
    if human is not None:
        with autocast(run), _statistics_kept(run):
            loss = parsing_loss(run.model.parse(human.image), human.part_map, recipe.parsing_average)
        backward(recipe.weight_human * loss)
        losses["human"] = (recipe.weight_human, loss)
    sum_gradients(run)
    run.optimiser.step()
    return as_numbers(number, {name: loss for name, (_, loss) in losses.items()})


def _reid_losses(run: ReIDRun, number: int, batch: ReIDBatch) -> dict[str, tuple[float, Float[Tensor, ""]]]:
    """The first stream's losses with their weights (Eq. 10), by the recipe's schedule."""
    recipe = run.recipe
    parsing_only = number < recipe.parsing_only_epochs * run.data.steps_per_epoch
    output = run.model(batch.image)
    losses: dict[str, tuple[float, Tensor]] = {}
    if output.parsing_logits is not None:
        logits, part_map = output.parsing_logits, batch.part_map
        if batch.labelled is not None:
            logits, part_map = logits[batch.labelled], part_map[batch.labelled]
        loss = parsing_loss(logits, part_map, recipe.parsing_average)
        losses["parsing"] = (recipe.weight_parsing, loss)
    if parsing_only:
        return losses
    learns_identity, learns_triplet = (not recipe.alternate or number % 2 == turn for turn in (1, 0))
    if learns_identity:
        loss = _identity(recipe, output.identity_logits, batch.identity, output.visibility)
        losses["identity"] = (recipe.weight_identity, loss)
    if learns_triplet:
        compared = output.features if recipe.triplet_on == "features" else output.embedding
        loss = triplet_loss(compared, output.visibility, batch.identity, recipe.margin)
        losses["triplet"] = (recipe.weight_triplet, loss)
    if output.whole is not None:
        always = torch.ones_like(output.visibility[:, :1])
        if learns_identity:
            loss = _identity(recipe, output.whole.identity_logits, batch.identity, always)
            losses["whole_identity"] = (recipe.weight_identity, loss)
        if learns_triplet:
            loss = triplet_loss(output.whole.features, always, batch.identity, recipe.margin)
            losses["whole_triplet"] = (recipe.weight_triplet, loss)
    return losses


def _identity(recipe: Recipe, logits: Tensor, identity: Tensor, visibility: Tensor) -> Float[Tensor, ""]:
    return identity_loss(logits, identity, visibility, recipe.identity_average, recipe.label_smoothing)


@contextmanager
def _statistics_kept(run: ReIDRun) -> Iterator[None]:
    """Normalise by the human-labelled batch, but let the running statistics describe the ReID photos alone."""
    if run.recipe.running_statistics == "both":
        yield
        return
    norms = {m: m.momentum for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in norms.items():
        norm.momentum = momentum


def _provenance(run: ReIDRun) -> dict[str, Any]:
    return {
        **run.data.description,
        "steps": run.steps,
        "seed": run.recipe.seed,
        "recipe": run.recipe.as_text(),
        **_threshold(run),
    }


def _threshold(run: ReIDRun) -> dict[str, Any]:
    """The distance below which two photos are called the same person: where both kinds of error are equally frequent.

    Measured on people kept out of training; without such people on the training photos themselves, which flatters it,
    and the header says so. Probabilities of the same person are fitted on people kept out alone: one that is known to
    be too sure is worse than none.
    """
    photos, labels, cameras = run.data.validation
    source = "validation identities"
    if not len(photos):
        source, chosen = "training identities", generator_for(run.recipe.seed, "threshold")
        rows = torch.randperm(len(run.data.labels), generator=chosen)[:_PHOTOS_TO_COMPARE]
        photos, labels = run.data.reid.photos[rows], run.data.labels[rows]
    features = Embedder(run.model, device=run.device)(photos)
    above = torch.ones(len(labels), len(labels), dtype=torch.bool).triu(1)
    distance, match = part_distance(features, features)[above], (labels[:, None] == labels)[above]
    if not bool((match & distance.isfinite()).any()) or bool((match | ~distance.isfinite()).all()):
        return {"same_below_from": "nothing: no pairs to compare"}
    threshold, error = equal_error(distance, match)
    told = {"same_below": threshold, "same_below_error": error, "same_below_from": source}
    if not len(cameras):
        return told
    return told | calibration_record(KnownPeople(features, labels, cameras), source)


def _report(run: ReIDRun, done: int, *, json: bool) -> None:
    finished = done == run.steps
    if json:
        summary = {"out": str(run.recipe.out), "step": done, "steps": run.steps, "finished": finished}
        say(json_format.dumps(summary))
    elif finished:
        say(f"done: {run.recipe.out / 'weights.safetensors'}")
    else:
        say(f"stopped after step {done} of {run.steps}; go on with --resume")
