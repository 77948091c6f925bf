from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpnet import weights
from hpnet.calibration import calibration_of
from hpnet.data.photos import PhotoError
from hpnet.data.transforms import Augmentation
from hpnet.model import ModelConfig
from hpnet.training.batches import batches_from
from hpnet.training.losses import parsing_loss
from hpnet.training.recipe import Recipe, RecipeError
from hpnet.training.run import INTERRUPTED, rate_factor
from hpnet.training.train import ReIDRun, fit, setup, step, train
from reference import random_state, resnet_names
from test_model import assert_agree

Tiny = Callable[..., Recipe]
ROOT = Path(__file__).parents[2]


def started(recipe: Recipe, *, resume: bool = False) -> ReIDRun:
    return setup(recipe, resume=resume, quiet=True)


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def values(run: ReIDRun) -> dict[str, Tensor]:
    """Everything that training changes."""
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for key, entry in run.optimiser.state_dict()["state"].items():
        state |= {f"{name} of {key}": value.clone() for name, value in entry.items() if isinstance(value, Tensor)}
    return state


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def recipe_file(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(tiny(**changes).as_text())
        return path

    return write


# --- a run from start to end


def test_a_finished_run_leaves_all_it_promises(
    recipe_file: Callable[..., Path], tmp_path: Path, pascal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(human_set="pascal", human_root=pascal, augmentation=Augmentation(0.5, 0.5, 0.5))
    assert train(path, "--epochs", "2", json=True) == 0
    run = tmp_path / "run"
    said = json.loads(capsys.readouterr().out)
    assert said == {"out": str(run), "step": 4, "steps": 4, "finished": True}

    header = weights.read_header(run / "weights.safetensors")
    assert header.config.identities == 0
    assert header.config.size == (64, 32)
    assert header.training["reid"] == "market1501"
    assert (header.training["reid_images"], header.training["human"], header.training["steps"]) == (32, "pascal", 4)
    assert "epochs: 2" in header.training["recipe"]
    stored = torch.load(run / "checkpoint.pt", weights_only=True)
    assert stored["step"] == 4
    model = weights.load(run / "weights.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored["model"][name]), name

    rows = rows_of(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    for row in rows:
        assert {"identity", "triplet", "parsing", "human", "rate", "seconds", "wait"} <= set(row)
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["wait"] <= row["seconds"]
    assert list(run.glob("events.out.tfevents*"))  # TensorBoard's curves
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("kept_out", "source"), [(3, "validation identities"), (0, "training identities")])
def test_the_weights_say_where_same_ends_and_on_whom_that_was_measured(kept_out: int, source: str, tiny: Tiny) -> None:
    # A low threshold of the masks, for a network of few steps is sure of no part.
    run = started(tiny(validation_identities=kept_out, epochs=1, model=replace(tiny().model, threshold=0.1)))
    fit(run, quiet=True)
    told = weights.read_header(run.recipe.out / "weights.safetensors").training
    assert told["same_below_from"] == source
    assert 0 < told["same_below"] <= 2
    assert 0 <= told["same_below_error"] <= 1
    # Probabilities come from people kept out alone.
    assert (calibration_of(told, "") is not None) == ("calibration_from" in told) == (kept_out > 0)
    if kept_out:
        assert told["calibration_from"] == "validation identities: 3"
        assert told["calibration_error"] is None, "three are too few to be divided"


def test_losses_fall(tiny: Tiny) -> None:
    run = started(tiny(epochs=12, learning_rate=0.02, new_layer_rate=0.04, augmentation=Augmentation(0.5)))
    assert fit(run, quiet=True) == run.steps == 24
    rows = rows_of(run.recipe.out)

    def average(name: str, some: slice) -> float:
        chosen = rows[some]
        return sum(row[name] for row in chosen) / len(chosen)

    assert average("parsing", slice(-4, None)) < 0.7 * average("parsing", slice(0, 4))
    assert all(rows[0][name] > 0 for name in ("parsing", "triplet"))


def test_the_same_seed_gives_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((3, 3, 4)):
        run = started(tiny(seed=seed, out=tmp_path / str(number), epochs=1))
        fit(run, quiet=True)
        results.append(values(run))
    assert_identical(results[0], results[1])
    assert not torch.equal(results[0]["trunk.conv1.weight"], results[2]["trunk.conv1.weight"])


# --- stopping and going on


@pytest.mark.parametrize(("stop", "optimiser"), [(1, "sgd"), (2, "adam"), (3, "sgd")])
def test_stopped_and_resumed_is_as_never_stopped(
    stop: int, optimiser: str, tiny: Tiny, pascal: Path, tmp_path: Path
) -> None:
    chosen = {"human_set": "pascal", "human_root": pascal, "augmentation": Augmentation(0.5, 0.5, 0.5)}
    chosen |= {
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "optimiser": optimiser,
        "validation_identities": 2,
        "epochs": 6,
    }
    through = started(tiny(**chosen, out=tmp_path / "through"))
    assert fit(through, quiet=True) == through.steps == 6
    recipe = tiny(**chosen, out=tmp_path / "stopped")
    assert fit(started(recipe), stop_before=stop, quiet=True) == stop
    assert not (recipe.out / "weights.safetensors").exists()
    torch.rand(17)  # chance elsewhere must not matter
    resumed = started(recipe, resume=True)
    assert fit(resumed, quiet=True) == 6
    assert_identical(values(resumed), values(through))
    one, other = (weights.load(folder / "weights.safetensors") for folder in (recipe.out, through.recipe.out))
    assert_identical(one.state_dict(), other.state_dict())
    rows, expected = rows_of(recipe.out), rows_of(through.recipe.out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(rows, expected, strict=True):
        for name in ("identity", "triplet", "parsing", "human", "rate"):
            assert mine[name] == theirs[name]


def test_steps_behind_the_checkpoint_are_logged_once(tiny: Tiny) -> None:
    """Killed after steps that no checkpoint holds, in the middle of a line."""
    recipe = tiny()
    fit(started(recipe), stop_before=2, quiet=True)
    with (recipe.out / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "epoch": 1.5, "rate": 0.01}\n{"step": 4, "ep')
    assert fit(started(recipe, resume=True), quiet=True) == 6
    rows = rows_of(recipe.out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all("parsing" in row for row in rows)


def test_a_finished_run_is_done(tiny: Tiny) -> None:
    recipe = tiny(epochs=1)
    run = started(recipe)
    fit(run, quiet=True)
    again = started(recipe, resume=True)
    assert fit(again, quiet=True) == 2
    assert_identical(run.model.state_dict(), again.model.state_dict())


def test_checkpoints_are_written_on_the_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpnet.training import run as module

    saved: list[int] = []
    real = module._save_checkpoint
    monkeypatch.setattr(module, "_save_checkpoint", lambda run, done: (saved.append(done), real(run, done))[1])
    fit(started(tiny(checkpoint_minutes=0.0, epochs=2)), quiet=True)
    assert saved == [1, 2, 3, 4, 4]


def training_process(recipe: Path, *more: str) -> subprocess.Popen[str]:
    # As many threads as here: sums in another order would round otherwise.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "hpnet", "train", str(recipe), *more]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_ends_at_a_step_and_resume_goes_on(recipe_file: Callable[..., Path], tiny: Tiny, tmp_path: Path) -> None:
    path, run = recipe_file(epochs=400), tmp_path / "run"
    process = training_process(path, "--json")
    wait_for(lambda: (run / "log.jsonl").is_file() and len((run / "log.jsonl").read_text().splitlines()) > 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED == 130, err
    assert "Traceback" not in err
    said = json.loads(out)
    done = said["step"]
    assert not said["finished"]
    assert 2 < done < 800
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == done
    assert [row["step"] for row in rows_of(run)] == list(range(1, done + 1))
    assert not (run / "weights.safetensors").exists()

    resumed = started(tiny(epochs=400), resume=True)
    assert fit(resumed, stop_before=done + 2, quiet=True) == done + 2
    through = started(tiny(epochs=400, out=tmp_path / "through"))
    fit(through, stop_before=done + 2, quiet=True)
    assert_identical(values(resumed), values(through))


# --- refusals


def test_a_run_folder_that_is_not_empty_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="not empty"):
        started(tiny())
    with pytest.raises(RecipeError, match="nothing to resume"):
        started(tiny(), resume=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_not_overwritten(tiny: Tiny) -> None:
    recipe = tiny(epochs=1)
    fit(started(recipe), quiet=True)
    before = (recipe.out / "weights.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="go on with --resume"):
        started(recipe)
    assert (recipe.out / "weights.safetensors").read_bytes() == before


def test_an_empty_run_folder_will_do(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert fit(started(tiny()), stop_before=1, quiet=True) == 1


def test_a_run_that_cannot_start_leaves_nothing_in_its_own_way(tiny: Tiny, dolls: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(dolls, tmp_path / "Market-1501"))
    photo = sorted((broken / "bounding_box_train").iterdir())[2]
    whole = photo.read_bytes()
    photo.write_bytes(whole[:100])
    recipe = tiny(reid=broken, part_maps=broken / "part_maps")
    with pytest.raises(PhotoError, match=photo.name):
        started(recipe)
    photo.write_bytes(whole)
    assert fit(started(recipe), stop_before=1, quiet=True) == 1


def test_conflicts_with_the_stored_run_are_listed(tiny: Tiny) -> None:
    recipe = tiny()
    fit(started(recipe), stop_before=1, quiet=True)
    with pytest.raises(RecipeError, match=r"epochs: 3 -> 5; seed: 0 -> 1"):
        started(replace(recipe, epochs=5, seed=1), resume=True)


@pytest.mark.parametrize("spoil", ["torn", "foreign", "another model"])
def test_a_checkpoint_that_cannot_be_used_is_named(spoil: str, tiny: Tiny) -> None:
    recipe = tiny()
    fit(started(recipe), stop_before=1, quiet=True)
    path = recipe.out / "checkpoint.pt"
    if spoil == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"model": {}, "optimiser": {}, "step": 1} if spoil == "another model" else {"a": 1}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt") as caught:
        fit(started(recipe, resume=True), quiet=True)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_named(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used"):
        started(tiny(device="cuda:77"))


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny) -> None:
    run = started(tiny(learning_rate=1e30, new_layer_rate=1e30, epochs=20))
    with pytest.raises(FloatingPointError, match=r"step \d+: a loss is not finite"):
        fit(run, quiet=True)


# --- one step


def gradients(run: ReIDRun) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in run.model.named_parameters()}


def one_step(recipe: Recipe, number: int = 0) -> tuple[dict[str, float], dict[str, Tensor | None], ReIDRun]:
    """Losses, gradients, and the run after one step."""
    run = started(recipe)
    run.model.train()
    [(reid, human)] = batches_from(run.data, recipe, range(number, number + 1), run.device)
    losses = step(run, number, reid, human)
    return losses, gradients(run), run


def test_the_human_labelled_stream_adds_its_gradient(tiny: Tiny, pascal: Path, tmp_path: Path) -> None:
    """Gradients of both batches are summed before the update (Section 3.2)."""
    human = {"human_set": "pascal", "human_root": pascal}
    _, alone, _ = one_step(tiny(out=tmp_path / "alone"))
    losses, both, _ = one_step(tiny(**human, out=tmp_path / "both"))
    _, double, _ = one_step(tiny(**human, weight_human=2.0, out=tmp_path / "double"))
    assert losses["human"] > 0
    for name in ("parsing_heads.0.conv2.weight", "branches.1.0.conv1.weight", "trunk.conv1.weight"):
        first, second, third = (each[name] for each in (alone, both, double))
        assert first is not None
        assert second is not None
        assert third is not None
        added = second - first
        assert float(added.abs().max()) > 1e-3 * float(second.abs().max())
        assert_agree(third - first, 2 * added, 1e-3)
    classifier = "classifiers.0.weight"  # a stream of parsing teaches no identity
    assert alone[classifier] is not None
    assert torch.equal(alone[classifier], both[classifier])  # type: ignore[arg-type]


def test_the_human_loss_is_the_parsing_loss_of_its_batch(tiny: Tiny, pascal: Path, tmp_path: Path) -> None:
    recipe = tiny(human_set="pascal", human_root=pascal, out=tmp_path / "one")
    run = started(recipe)
    run.model.train()
    [(reid, human)] = batches_from(run.data, recipe, range(1), run.device)
    assert human is not None
    run.model(reid.image)  # batch norm's running statistics do not enter train mode
    expected = float(parsing_loss(run.model.parse(human.image), human.part_map).detach())
    assert step(run, 0, reid, human)["human"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("statistics", ["both", "reid"])
def test_running_statistics_may_describe_the_reid_photos_alone(
    statistics: Any, tiny: Tiny, pascal: Path, tmp_path: Path
) -> None:
    """The gradients are the same either way; only what evaluation will normalise by differs."""
    human = {"human_set": "pascal", "human_root": pascal}
    _, _, alone = one_step(tiny(out=tmp_path / "alone"))
    _, both, _ = one_step(tiny(**human, out=tmp_path / "both"))
    _, gradients, run = one_step(tiny(**human, running_statistics=statistics, out=tmp_path / "run"))
    norms = [name for name in run.model.state_dict() if "running" in name and "neck" not in name]
    ours, reid = run.model.state_dict(), alone.model.state_dict()
    assert norms
    assert all(torch.equal(ours[name], reid[name]) is (statistics == "reid") for name in norms)
    assert all(torch.equal(each, both[name]) for name, each in gradients.items() if each is not None)  # type: ignore[arg-type]
    momenta = {each.momentum for each in run.model.modules() if isinstance(each, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


@pytest.mark.parametrize("weight", ["weight_identity", "weight_triplet", "weight_parsing"])
def test_each_loss_is_weighed(weight: str, tiny: Tiny, tmp_path: Path) -> None:
    """Without the others, a loss of weight 3 has three times the gradient."""
    nothing = {"weight_identity": 0.0, "weight_triplet": 0.0, "weight_parsing": 0.0}
    # The threshold makes parts visible in a fresh network, whose probabilities are all about one half.
    model = replace(tiny().model, threshold=0.3)
    single, triple = (
        one_step(tiny(**(nothing | {weight: value}), model=model, out=tmp_path / str(value)))[1] for value in (1.0, 3.0)
    )
    probe = "trunk.layer3.1.conv2.weight"
    assert bool(single[probe].any())  # type: ignore[union-attr]
    assert_agree(triple[probe], 3 * single[probe])  # type: ignore[arg-type, operator]


def test_photos_without_a_part_map_train_identities_alone(tiny: Tiny, dolls: Path, tmp_path: Path) -> None:
    """Their parsing logits get no gradient; the parsing loss is that of the others, the other losses are as ever."""
    some = tmp_path / "some_maps"
    shutil.copytree(dolls / "part_maps", some)
    for path in sorted((some / "bounding_box_train").iterdir())[::2]:
        path.unlink()
    model = replace(tiny().model, threshold=0.3)
    recipe = tiny(part_maps=some, model=model, augmentation=Augmentation(flip=0.0), out=tmp_path / "some")
    whole = tiny(model=model, augmentation=Augmentation(flip=0.0), out=tmp_path / "whole")
    losses, found, run = one_step(recipe)
    all_losses, _, _ = one_step(whole)
    assert losses["identity"] == pytest.approx(all_losses["identity"], rel=1e-5)
    assert losses["triplet"] == pytest.approx(all_losses["triplet"], rel=1e-5)
    [(batch, _)] = batches_from(run.data, recipe, range(1), run.device)
    assert batch.labelled is not None
    assert 0 < len(batch.labelled) < len(batch.image)
    fresh = started(replace(recipe, out=tmp_path / "fresh"))
    fresh.model.train()
    logits = fresh.model(batch.image).parsing_logits
    expected = parsing_loss(logits[batch.labelled], batch.part_map[batch.labelled])
    assert losses["parsing"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found["parsing_heads.0.conv2.weight"] is not None


def test_a_batch_without_any_part_map_is_no_trouble(tiny: Tiny, tmp_path: Path) -> None:
    run = started(tiny(out=tmp_path / "run"))
    run.model.train()
    [(batch, _)] = batches_from(run.data, run.recipe, range(1), run.device)
    losses = step(run, 0, replace(batch, labelled=torch.empty(0, dtype=torch.int64)), None)
    assert losses["parsing"] == 0
    assert losses["identity"] > 0
    weight = run.model.parsing_heads[0].conv2.weight.grad  # type: ignore[union-attr]
    assert weight is not None
    assert not bool(weight.any())


def test_losses_alternate_as_the_authors_do(tiny: Tiny, tmp_path: Path) -> None:
    for number in range(4):
        losses, _, _ = one_step(tiny(alternate=True, out=tmp_path / str(number)), number)
        assert set(losses) == {"parsing", "triplet" if number % 2 == 0 else "identity"}
    assert set(one_step(tiny(out=tmp_path / "sum"))[0]) == {"parsing", "triplet", "identity"}


def test_first_epochs_may_learn_parsing_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Two steps are an epoch."""
    expected = [{"parsing"}, {"parsing"}, {"parsing", "identity", "triplet"}]
    for number, names in enumerate(expected):
        losses, found, run = one_step(tiny(parsing_only_epochs=1, out=tmp_path / str(number)), number)
        assert set(losses) == names
        if number < 2:
            assert found["classifiers.0.weight"] is None
            assert found["necks.0.weight"] is None
            assert run.optimiser.state_dict()["state"]


def test_the_baseline_learns_identities_alone(tiny: Tiny, tmp_path: Path, pascal: Path) -> None:
    model = ModelConfig(trunk="resnet18", branch="compact", size=(64, 32), baseline=True)
    losses, _, _ = one_step(tiny(model=model, part_maps=None, human_set="pascal", human_root=pascal))
    assert set(losses) == {"identity", "triplet"}


@pytest.mark.parametrize("share", [False, True])
def test_everything_learns(share: bool, tiny: Tiny) -> None:
    """Every parameter but the necks' biases moves in a few steps, and those stay 0."""
    model = replace(tiny().model, threshold=0.3, share_conv5=share)
    run = started(tiny(model=model, epochs=1))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    fit(run, quiet=True)
    for name, parameter in run.model.named_parameters():
        if name.startswith("necks.") and name.endswith("bias"):
            assert not bool(parameter.any())
        else:
            assert not torch.equal(parameter, before[name]), name


def test_sgd_is_the_papers(tiny: Tiny) -> None:
    """Momentum 0.9, weight decay, no Nesterov, written out for the first two steps."""
    recipe = tiny(weight_decay=0.01)
    run = started(recipe)
    run.model.train()
    names = ("trunk.conv1.weight", "classifiers.1.weight")
    parameters = dict(run.model.named_parameters())
    expected = {name: parameters[name].detach().clone() for name in names}
    momentum = {name: torch.zeros_like(expected[name]) for name in names}
    for number, (reid, human) in enumerate(batches_from(run.data, recipe, range(2), run.device)):
        step(run, number, reid, human)
        for name, rate in zip(names, (0.01, 0.02), strict=True):
            gradient = parameters[name].grad
            assert gradient is not None
            momentum[name] = 0.9 * momentum[name] + gradient + 0.01 * expected[name]
            expected[name] -= rate * momentum[name]
            torch.testing.assert_close(parameters[name].detach(), expected[name], rtol=1e-5, atol=1e-7)


# --- the schedule


def test_the_papers_schedule(tiny: Tiny) -> None:
    recipe = replace(tiny(), epochs=300)
    assert [rate_factor(recipe, epoch) for epoch in (0.0, 100.0, 239.99)] == [1, 1, 1]
    assert [rate_factor(recipe, epoch) for epoch in (240.0, 270.5, 299.9)] == pytest.approx([0.1] * 3)
    twice = replace(recipe, rate_drops=(10, 20))
    assert [rate_factor(twice, epoch) for epoch in (9.9, 10.0, 19.9, 20.0)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_falls_to_zero(tiny: Tiny) -> None:
    recipe = replace(tiny(), epochs=10, schedule="cosine", warmup_epochs=2.0)
    factors = [rate_factor(recipe, epoch / 10) for epoch in range(20, 101)]
    assert factors[0] == 1
    assert factors[40] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0)
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_in_a_line_from_a_hundredth(schedule: Any, tiny: Tiny) -> None:
    recipe = replace(tiny(), epochs=10, schedule=schedule, warmup_epochs=4.0)
    assert [rate_factor(recipe, epoch) for epoch in (0.0, 2.0, 4.0)] == pytest.approx([0.01, 0.505, 1])
    for epoch in (0.0, 9.99):
        assert 0 <= rate_factor(replace(recipe, warmup_epochs=10.0), epoch) <= 1


def test_both_rates_follow_the_schedule(tiny: Tiny) -> None:
    run = started(tiny(rate_drops=(1, 2), epochs=3))
    fit(run, quiet=True)
    assert [row["rate"] for row in rows_of(run.recipe.out)] == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert [group["lr"] for group in run.optimiser.param_groups] == pytest.approx([1e-4, 2e-4])


# --- where weights start


def test_training_starts_from_imagenet(tiny: Tiny, tmp_path: Path) -> None:
    state = random_state(resnet_names("resnet18", (0, 1, 2, 3, 4)), seed=2)
    torch.save(state, tmp_path / "resnet18.pth")
    run = started(tiny(initial=tmp_path / "resnet18.pth"))
    assert torch.equal(run.model.trunk.conv1.weight, state["conv1.weight"])
    with pytest.raises(weights.WeightsError, match=r"gone\.pth"):
        started(tiny(initial=tmp_path / "gone.pth", out=tmp_path / "other"))


# --- several processes

SCRIPT = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from hpnet.training.recipe import read_recipe
from hpnet.training.train import fit, setup
recipe, out = Path(sys.argv[1]), Path(sys.argv[2])
run = setup(read_recipe(recipe), quiet=True)
done = fit(run, quiet=True)
state = {name: p.detach() for name, p in run.model.named_parameters()}
torch.save({"done": done, "state": state}, out / f"rank{run.share[0]}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=240, check=False)


@pytest.mark.slow
def test_two_processes_end_with_equal_weights(
    recipe_file: Callable[..., Path], tiny: Tiny, tmp_path: Path, pascal: Path
) -> None:
    path = recipe_file(human_set="pascal", human_root=pascal, epochs=2)
    (tmp_path / "script.py").write_text(SCRIPT)
    result = torchrun(str(tmp_path / "script.py"), str(path), str(tmp_path))
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["done"] == second["done"] == 4
    assert_identical(first["state"], second["state"])
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3, 4]
    fresh = started(tiny(out=tmp_path / "fresh"))
    assert not torch.equal(first["state"]["trunk.conv1.weight"], fresh.model.trunk.conv1.weight)
    stored = weights.load(tmp_path / "run" / "weights.safetensors")
    assert torch.equal(stored.trunk.conv1.weight, first["state"]["trunk.conv1.weight"])


@pytest.mark.slow
def test_the_verb_runs_under_torchrun_and_checks_the_shares(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(epochs=1)
    result = torchrun("-m", "hpnet", "train", str(path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    refused = torchrun("-m", "hpnet", "train", str(path), "--out", str(tmp_path / "odd"), "--identities_per_batch", "3")
    assert refused.returncode != 0
    assert "must be multiples of the 2 processes" in refused.stderr


# --- options beyond the paper


def test_the_average_of_the_weights_is_what_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    decay = 0.6
    plain = started(tiny(out=tmp_path / "plain"))
    expected: dict[str, Tensor] = {}
    batches = batches_from(plain.data, plain.recipe, range(plain.steps), plain.device)
    for number, batch in enumerate(batches):
        step(plain, number, *batch)
        state = {name: each.double() for name, each in plain.model.state_dict().items() if each.is_floating_point()}
        expected = {name: each if number == 0 else decay * expected[name] + (1 - decay) * each
                    for name, each in state.items()}  # fmt: skip
    averaged = started(tiny(out=tmp_path / "averaged", average_decay=decay))
    fit(averaged, quiet=True)
    kept = weights.load(tmp_path / "averaged" / "weights.safetensors").state_dict()
    for name, tensor in expected.items():
        if name in kept:
            assert_agree(kept[name], tensor.float(), 1e-4)
    assert any(not torch.allclose(kept[name], plain.model.state_dict()[name]) for name in kept if name in expected)


def test_an_averaged_run_goes_on_exactly(tiny: Tiny, tmp_path: Path) -> None:
    whole = started(tiny(average_decay=0.5, out=tmp_path / "whole"))
    fit(whole, quiet=True)
    fit(started(tiny(average_decay=0.5)), stop_before=3, quiet=True)
    resumed = started(tiny(average_decay=0.5), resume=True)
    fit(resumed, quiet=True)
    assert_identical(whole.model.state_dict(), resumed.model.state_dict())
    again = started(tiny(average_decay=0.5), resume=True)  # finished: nothing to do, and nothing changes
    fit(again, quiet=True)
    assert_identical(whole.model.state_dict(), again.model.state_dict())


def test_the_triplet_loss_may_look_behind_the_neck(tiny: Tiny, tmp_path: Path) -> None:
    found = []
    for place in ("features", "embedding"):
        run = started(tiny(triplet_on=place, out=tmp_path / place, model=replace(tiny().model, threshold=0.01)))
        batch = next(batches_from(run.data, run.recipe, range(1), run.device))
        torch.manual_seed(0)
        found.append(step(run, 0, *batch))
    assert found[0]["identity"] == found[1]["identity"]
    assert found[0]["triplet"] != found[1]["triplet"]


def test_a_global_branch_learns_and_stays_behind(tiny: Tiny, tmp_path: Path) -> None:
    run = started(tiny(epochs=1, model=replace(tiny().model, global_branch=True)))
    before = {name: each.clone() for name, each in run.model.state_dict().items()}
    fit(run, quiet=True)
    after = run.model.state_dict()
    assert not torch.equal(before["whole.branch.0.conv1.weight"], after["whole.branch.0.conv1.weight"])
    assert {"whole_identity", "whole_triplet"} <= set(rows_of(run.recipe.out)[0])
    written = run.recipe.out / "weights.safetensors"
    assert not weights.read_header(written).config.global_branch
    model = weights.load(written)
    assert not [name for name in model.state_dict() if name.startswith("whole")]
    weights.load_learnt(started(tiny(out=tmp_path / "other", model=run.recipe.model)).model, written)


@pytest.mark.parametrize(("name", "value"), [("average_decay", 1.0), ("label_smoothing", -0.1)])
def test_shares_that_cannot_be_are_refused(name: str, value: float, tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match=name):
        tiny(**{name: value})
