"""A training run, whatever is learnt: its folder, its steps, and how it stops and goes on.

In: a model, batches by step number, and a function that does one step. Out: a run folder with the resolved
`recipe.yaml`, `log.jsonl`, TensorBoard curves and `checkpoint.pt`, from which `--resume` goes on exactly.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpnet import weights
from hpnet.data.sampler import generator_for
from hpnet.embed import usable_device
from hpnet.files import written_whole
from hpnet.model import TrunkNetwork
from hpnet.training.log import Log
from hpnet.training.recipe import RecipeError, RunRecipe, read_recipe

INTERRUPTED: Final = 130  # exit code of a run that Ctrl-C ended
_RATE_DROP: Final = 0.1  # Section 4.1
_WARMUP_START: Final = 0.01
_PHOTOS_TO_UNFOLD: Final = 256

Batch = TypeVar("Batch")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """What changes during a run, and where it goes.

    Attributes:
        recipe: what decides the run.
        model: what learns.
        optimiser: over the model's parameter groups, each with its `base` rate.
        device: where it learns.
        share: (rank, world) of this process.
        steps_per_epoch: steps in one pass over the data.
        average: the moving average of the model's weights and running statistics, or None.
    """

    recipe: RunRecipe
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    share: tuple[int, int]
    steps_per_epoch: int
    average: AveragedModel | None = field(default=None, kw_only=True)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.share[0] == 0


def go(
    run: Run,
    batches: Callable[[range], Iterable[Batch]],
    step: Callable[[int, Batch], dict[str, float]],
    *,
    stop_before: int | None = None,
    quiet: bool = False,
) -> int:
    """Step after step until the end, or until Ctrl-C, which ends the run at the next whole step with a checkpoint.

    At the run's end the model takes over the average of its weights, if the recipe wants one.

    Args:
        run: its model and optimiser are changed.
        batches: the batches of consecutive steps, counted from 0 over the whole run.
        step: does one; takes its number and batch, returns the losses by name.
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
        for batch in batches(range(done, last)):
            waited = time.monotonic() - started
            values = step(done, batch)
            if run.average is not None:
                run.average.update_parameters(run.model)
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
    if run.average is not None and done == run.steps:
        run.model.load_state_dict(run.average.module.state_dict())
    return done


def rate_factor(recipe: RunRecipe, epoch: float) -> float:
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


def set_rates(run: Run, number: int) -> None:
    """Give every parameter group its rate for a step."""
    for group in run.optimiser.param_groups:
        group["lr"] = group["base"] * rate_factor(run.recipe, number / run.steps_per_epoch)


def optimiser_for(recipe: RunRecipe, groups: tuple[list[nn.Parameter], list[nn.Parameter]]) -> torch.optim.Optimizer:
    """The recipe's optimiser over parameters that start from ImageNet and newly added ones."""
    old, new = groups
    rated = [{"params": old, "base": recipe.learning_rate}, {"params": new, "base": recipe.new_layer_rate}]
    if recipe.optimiser == "adam":
        return torch.optim.AdamW(rated, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(rated, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def autocast(run: Run) -> torch.autocast:
    """The recipe's precision, as a context."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.recipe.precision == "bfloat16")


def average_of(recipe: RunRecipe, model: nn.Module) -> AveragedModel | None:
    """Where a moving average of the model is kept, if the recipe wants one."""
    if not recipe.average_decay:
        return None
    average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def backward(loss: Float[Tensor, ""]) -> None:
    """Add a loss's gradients."""
    loss.backward()  # type: ignore[no-untyped-call]


def sum_gradients(run: Run) -> None:
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


def as_numbers(number: int, losses: dict[str, Float[Tensor, ""]]) -> dict[str, float]:
    """The losses of a step as numbers, in one wait for the device.

    Raises:
        FloatingPointError: one is not finite.
    """
    values = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist(), strict=True))
    if not all(map(math.isfinite, values.values())):
        raise FloatingPointError(f"step {number}: a loss is not finite ({values})")
    return values


def share_of_work(**divided: int) -> tuple[int, int]:
    """(rank, world) of this process; under torchrun the process group is opened.

    Args:
        divided: batch sizes by the recipe's names for them, of which each process takes its share.

    Raises:
        RecipeError: a batch does not divide evenly.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if any(size % world for size in divided.values()):
        raise RecipeError(f"{' and '.join(divided)} must be multiples of the {world} processes")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), world


def device_for(recipe: RunRecipe) -> torch.device:
    """The recipe's device, or this process's GPU, or the processor."""
    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return usable_device(recipe.device or local)


def across_devices(model: Network, device: torch.device, share: tuple[int, int]) -> Network:
    """The model on its device; on several GPUs with batch statistics of the whole batch, as if one had seen it."""
    if share[1] > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model.to(device)


def check_folder(recipe: RunRecipe, *, resume: bool) -> None:
    """Refuse a run folder that is in use, or (resuming) one that holds nothing to go on with or another run.

    Raises:
        RecipeError: it does.
    """
    stored = recipe.out / "recipe.yaml"
    if not resume:
        if recipe.out.exists() and any(recipe.out.iterdir()):
            raise RecipeError(
                f"{recipe.out}: the run folder is not empty; choose another --out, or go on with --resume"
            )
        return
    if not (recipe.out / "checkpoint.pt").is_file() or not stored.is_file():
        raise RecipeError(f"{recipe.out}: nothing to resume, it holds no recipe.yaml and checkpoint.pt")
    conflicts = recipe.conflicts(read_recipe(stored, kind=type(recipe)))
    if conflicts:
        raise RecipeError(f"{recipe.out}: the run was started otherwise: " + "; ".join(conflicts))


def open_folder(recipe: RunRecipe) -> None:
    """Make the run folder. Called when nothing is missing: a run that cannot start leaves none in its own way."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    (recipe.out / "recipe.yaml").write_text(recipe.as_text(), encoding="utf-8")


def start_from_imagenet(model: TrunkNetwork, recipe: RunRecipe, photos: UInt8[Tensor, "n 3 H W"]) -> None:
    """Start the model's trunk (and Conv5, where it has the ResNet's own) from the recipe's ImageNet weights, if any.

    Args:
        model: changed in place.
        recipe: names the file.
        photos: of the training set; some of them measure a folded trunk's batch norms.
    """
    if recipe.initial is None:
        return
    if recipe.initial.suffix != ".npz":
        weights.load_imagenet(model, recipe.initial)
        return
    chosen = torch.randperm(len(photos), generator=generator_for(recipe.seed, "unfold"))[:_PHOTOS_TO_UNFOLD]
    weights.load_folded_trunk(model, recipe.initial, photos[chosen].float() / 255)


def _log(run: Run, done: int) -> AbstractContextManager[Log | None]:
    return Log(run.recipe.out, done, run.steps_per_epoch) if run.leads else nullcontext()


def _agree(run: Run, wanted: bool) -> bool:
    """Whether any process wants it; all must stop or save at the same step."""
    if run.share[1] == 1:
        return wanted
    vote = torch.tensor(float(wanted), device=run.device)
    dist.all_reduce(vote)
    return bool(vote > 0)


def _restore(run: Run) -> int:
    """Load the checkpoint, if there is one; returns the steps it has behind it."""
    path = run.recipe.out / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = weights.read_torch_file(path)
    try:
        run.model.load_state_dict(state["model"])
        run.optimiser.load_state_dict(state["optimiser"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        return int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]})") from error


def _save_checkpoint(run: Run, done: int) -> None:
    if not run.leads:
        return
    state = {"model": run.model.state_dict(), "optimiser": run.optimiser.state_dict(), "step": done}
    if run.average is not None:
        state["average"] = run.average.state_dict()
    with written_whole(run.recipe.out / "checkpoint.pt") as beside:
        torch.save(state, beside)


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
def _progress(run: Run, done: int, *, quiet: bool) -> Iterator[Callable[[int, dict[str, float]], None]]:
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not run.leads) as progress:
        task: Any = progress.add_task("", total=run.steps, completed=done, epoch="", losses="")

        def show(now: int, values: dict[str, float]) -> None:
            losses = "  ".join(f"{name} {values[name]:.3f}" for name in values if name not in ("seconds", "wait"))
            epoch = f"{now // run.steps_per_epoch} of {run.recipe.epochs}"
            progress.update(task, completed=now, epoch=epoch, losses=losses)

        yield show
