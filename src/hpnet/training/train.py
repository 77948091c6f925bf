"""The training loop (Section 3.2): two streams, two backward passes, one update per step.

In: a recipe. Out: a run folder with `weights.safetensors`, the resolved `recipe.yaml`, `log.jsonl`, TensorBoard curves
and `checkpoint.pt`, from which `--resume` goes on exactly.
"""

from __future__ import annotations

import json as json_format
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
import torch.distributed as dist
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from hpnet import weights
from hpnet.console import say
from hpnet.data.sampler import generator_for
from hpnet.distance import part_distance
from hpnet.embed import Embedder, usable_device
from hpnet.evaluation.metrics import equal_error
from hpnet.files import written_whole
from hpnet.model import HPNet
from hpnet.training.batches import ParsingBatch, ReIDBatch, TrainingData, batches_from, load_data
from hpnet.training.log import Log
from hpnet.training.losses import identity_loss, parsing_loss, triplet_loss
from hpnet.training.recipe import Recipe, RecipeError, read_recipe

INTERRUPTED: Final = 130  # exit code of a run that Ctrl-C ended
_RATE_DROP: Final = 0.1  # Section 4.1
_WARMUP_START: Final = 0.01
_PHOTOS_TO_UNFOLD: Final = 256
_PHOTOS_TO_COMPARE: Final = 1000


@dataclass(frozen=True)
class Run:
    """What changes during a run, and where it goes."""

    recipe: Recipe
    data: TrainingData
    model: HPNet
    optimiser: torch.optim.Optimizer
    device: torch.device
    share: tuple[int, int]  # (rank, world)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.data.steps_per_epoch

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.share[0] == 0


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


def setup(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> Run:
    """Read the data, build model and optimiser, and make the run folder, or restore what a checkpoint holds.

    Raises:
        RecipeError: the run folder is not empty, or (resuming) holds no checkpoint or another recipe's.
    """
    share = _share_of_work(recipe)
    if share[0] == 0:
        _check_folder(recipe, resume=resume)
    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    device = usable_device(recipe.device or local)
    data = load_data(recipe, quiet=quiet or share[0] > 0)
    torch.manual_seed(recipe.seed)
    model = HPNet(replace(recipe.model, identities=data.identities))
    if not resume:
        _start_from_weights(model, recipe, data)
    if share[1] > 1 and device.type == "cuda":
        # Statistics of the whole batch, as if one device had seen it.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model.to(device)
    if share[0] == 0 and not resume:
        # Only now that nothing is missing: a run that could not start leaves no folder that is in its own way.
        recipe.out.mkdir(parents=True, exist_ok=True)
        (recipe.out / "recipe.yaml").write_text(recipe.as_text(), encoding="utf-8")
    return Run(recipe, data, model, _optimiser(model, recipe), device, share)


def fit(run: Run, *, stop_before: int | None = None, quiet: bool = False) -> int:
    """Train until the end, or until Ctrl-C, which ends the run at the next whole step with a checkpoint.

    Args:
        run: from `setup`; its model and optimiser are changed.
        stop_before: a step to stop at as Ctrl-C would.
        quiet: no progress bar.

    Returns:
        Steps done since the run's start; equal to `run.steps` when it is finished.
    """
    done = _restore(run)
    last = run.steps if stop_before is None else min(stop_before, run.steps)
    run.model.train()
    with _interruptible() as interrupted, _progress(run, done, quiet=quiet) as bar, _log(run, done) as log:
        saved = started = time.monotonic()
        for reid, human in batches_from(run.data, run.recipe, range(done, last), run.device, run.share):
            waited = time.monotonic() - started
            values = step(run, done, reid, human)
            done += 1
            values |= {"seconds": time.monotonic() - started, "wait": waited}
            if log is not None:
                log.write(done, {"rate": run.optimiser.param_groups[0]["lr"], **values})
            bar(done, values)
            if _agree(run, interrupted.is_set()):
                break
            if _agree(run, time.monotonic() - saved > 60 * run.recipe.checkpoint_minutes):
                _save_checkpoint(run, done)
                saved = time.monotonic()
            started = time.monotonic()
    _save_checkpoint(run, done)
    if done == run.steps and run.leads:
        weights.save(run.model, run.recipe.out / "weights.safetensors", training=_provenance(run))
    return done


def step(run: Run, number: int, reid: ReIDBatch, human: ParsingBatch | None) -> dict[str, float]:
    """One step: ReID batch forward and backward, human-labelled batch forward and backward, one update.

    Returns:
        The losses by name, before weighting.
    """
    recipe = run.recipe
    for group in run.optimiser.param_groups:
        group["lr"] = group["base"] * rate_factor(recipe, number / run.data.steps_per_epoch)
    run.optimiser.zero_grad(set_to_none=True)
    with _autocast(run):
        losses = _reid_losses(run, number, reid)
    _backward(torch.stack([weight * loss for weight, loss in losses.values()]).sum())
    if human is not None:
        with _autocast(run), _statistics_kept(run):
            loss = parsing_loss(run.model.parse(human.image), human.part_map, recipe.parsing_average)
        _backward(recipe.weight_human * loss)
        losses["human"] = (recipe.weight_human, loss)
    _sum_gradients(run)
    run.optimiser.step()
    values = torch.stack([loss.detach() for _, loss in losses.values()]).tolist()  # one wait for the device, not four
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f"step {number}: a loss is not finite ({dict(zip(losses, values, strict=True))})")
    return dict(zip(losses, values, strict=True))


def rate_factor(recipe: Recipe, epoch: float) -> float:
    """What the learning rates are multiplied with at a moment of the run.

    Args:
        recipe: the schedule.
        epoch: passes done, with fraction.
    """
    if epoch < recipe.warmup_epochs:
        return _WARMUP_START + (1 - _WARMUP_START) * epoch / recipe.warmup_epochs
    if recipe.schedule == "cosine":
        share = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * share))
    return float(_RATE_DROP ** sum(epoch >= drop for drop in recipe.rate_drops))


def _reid_losses(run: Run, number: int, batch: ReIDBatch) -> dict[str, tuple[float, Float[Tensor, ""]]]:
    """The first stream's losses with their weights (Eq. 10), by the recipe's schedule."""
    recipe = run.recipe
    parsing_only = number < recipe.parsing_only_epochs * run.data.steps_per_epoch
    output = run.model(batch.image)
    losses: dict[str, tuple[float, Tensor]] = {}
    if output.parsing_logits is not None:
        loss = parsing_loss(output.parsing_logits, batch.part_map, recipe.parsing_average)
        losses["parsing"] = (recipe.weight_parsing, loss)
    if parsing_only:
        return losses
    if not recipe.alternate or number % 2 == 1:
        loss = identity_loss(output.identity_logits, batch.identity, output.visibility, recipe.identity_average)
        losses["identity"] = (recipe.weight_identity, loss)
    if not recipe.alternate or number % 2 == 0:
        loss = triplet_loss(output.features, output.visibility, batch.identity, recipe.margin)
        losses["triplet"] = (recipe.weight_triplet, loss)
    return losses


def _log(run: Run, done: int) -> AbstractContextManager[Log | None]:
    return Log(run.recipe.out, done, run.data.steps_per_epoch) if run.leads else nullcontext()


def _optimiser(model: HPNet, recipe: Recipe) -> torch.optim.Optimizer:
    old, new = model.parameter_groups()
    groups = [{"params": old, "base": recipe.learning_rate}, {"params": new, "base": recipe.new_layer_rate}]
    if recipe.optimiser == "adam":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _backward(loss: Float[Tensor, ""]) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _autocast(run: Run) -> torch.autocast:
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.recipe.precision == "bfloat16")


@contextmanager
def _statistics_kept(run: Run) -> Iterator[None]:
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


def _sum_gradients(run: Run) -> None:
    """Average the gradients over the processes, in one message."""
    if run.share[1] == 1:
        return
    # Which losses a step has follows from its number, so every process has the same gradients to send.
    gradients = [each.grad for group in run.optimiser.param_groups for each in group["params"] if each.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= run.share[1]
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, piece in zip(gradients, torch.split(message, sizes), strict=True):
        gradient.copy_(piece.view_as(gradient))


def _agree(run: Run, wanted: bool) -> bool:
    """Whether any process wants it; all must stop or save at the same step."""
    if run.share[1] == 1:
        return wanted
    vote = torch.tensor(float(wanted), device=run.device)
    dist.all_reduce(vote)
    return bool(vote > 0)


def _share_of_work(recipe: Recipe) -> tuple[int, int]:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if recipe.identities_per_batch % world or (recipe.has_human_stream and recipe.human_batch % world):
        raise RecipeError(f"identities_per_batch and human_batch must be multiples of the {world} processes")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), world


def _check_folder(recipe: Recipe, *, resume: bool) -> None:
    stored = recipe.out / "recipe.yaml"
    if not resume:
        if recipe.out.exists() and any(recipe.out.iterdir()):
            raise RecipeError(
                f"{recipe.out}: the run folder is not empty; choose another --out, or go on with --resume"
            )
        return
    if not (recipe.out / "checkpoint.pt").is_file() or not stored.is_file():
        raise RecipeError(f"{recipe.out}: nothing to resume, it holds no recipe.yaml and checkpoint.pt")
    conflicts = recipe.conflicts(read_recipe(stored))
    if conflicts:
        raise RecipeError(f"{recipe.out}: the run was started otherwise: " + "; ".join(conflicts))


def _start_from_weights(model: HPNet, recipe: Recipe, data: TrainingData) -> None:
    if recipe.initial is None:
        return
    if weights.is_own(recipe.initial):
        weights.load_learnt(model, recipe.initial)
        return
    if recipe.initial.suffix != ".npz":
        weights.load_imagenet(model, recipe.initial)
        return
    chosen = torch.randperm(len(data.reid.photos), generator=generator_for(recipe.seed, "unfold"))[:_PHOTOS_TO_UNFOLD]
    weights.load_folded_trunk(model, recipe.initial, data.reid.photos[chosen].float() / 255)


def _restore(run: Run) -> int:
    """Load the checkpoint, if there is one; returns the steps it has behind it."""
    path = run.recipe.out / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = weights.read_torch_file(path)
    try:
        run.model.load_state_dict(state["model"])
        run.optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]})") from error


def _save_checkpoint(run: Run, done: int) -> None:
    if not run.leads:
        return
    state = {"model": run.model.state_dict(), "optimiser": run.optimiser.state_dict(), "step": done}
    with written_whole(run.recipe.out / "checkpoint.pt") as beside:
        torch.save(state, beside)


def _provenance(run: Run) -> dict[str, Any]:
    return {
        **run.data.description,
        "steps": run.steps,
        "seed": run.recipe.seed,
        "recipe": run.recipe.as_text(),
        **_threshold(run),
    }


def _threshold(run: Run) -> dict[str, float | str]:
    """The distance below which two photos are called the same person: where both kinds of error are equally frequent.

    Measured on people kept out of training; without such people on the training photos themselves, which flatters it,
    and the header says so.
    """
    photos, labels = run.data.validation
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
    return {"same_below": threshold, "same_below_error": error, "same_below_from": source}


def _report(run: Run, done: int, *, json: bool) -> None:
    finished = done == run.steps
    if json:
        summary = {"out": str(run.recipe.out), "step": done, "steps": run.steps, "finished": finished}
        say(json_format.dumps(summary))
    elif finished:
        say(f"done: {run.recipe.out / 'weights.safetensors'}")
    else:
        say(f"stopped after step {done} of {run.steps}; go on with --resume")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event; a second one interrupts as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(run: Run, done: int, *, quiet: bool) -> Iterator[Any]:
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not run.leads) as progress:
        task = progress.add_task("", total=run.steps, completed=done, epoch="", losses="")

        def show(now: int, values: dict[str, float]) -> None:
            losses = "  ".join(f"{name} {values[name]:.3f}" for name in values if name not in ("seconds", "wait"))
            epoch = f"{now // run.data.steps_per_epoch} of {run.recipe.epochs}"
            progress.update(task, completed=now, epoch=epoch, losses=losses)

        yield show
