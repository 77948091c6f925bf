from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpnet import weights
from hpnet.data.photos import find_photos, read_stack
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.files import fingerprint, sha256_of
from hpnet.model import HPNet, ModelConfig
from hpnet.training.teacher import load_teacher
from hpnet.weights import WeightsError
from reference import (
    State,
    Variant,
    authors_names,
    random_state,
    reference_forward,
    reference_trunk,
    resnet_names,
)
from test_model import SMALL, VARIANTS, assert_agree, drawn, trained


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Good weights in a file of their own."""
    path = tmp_path / "good.safetensors"
    weights.save(trained(SMALL()), path)
    return path


def rewritten(path: Path, **changes: str) -> Path:
    """The file with other texts in its header."""
    with weights.safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
        texts = file.metadata()
    other = path.with_name("rewritten.safetensors")
    save_file(load_file(path), other, metadata={**texts, **changes})
    return other


def refused(path: Path, *words: str, by: Any = weights.load) -> str:
    """The one clear line with which the file is refused."""
    with pytest.raises(WeightsError) as caught:
        by(path)
    line = str(caught.value)
    assert "\n" not in line
    for word in (path.name, *words):
        assert word in line
    return line


# --- our own files


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_saved_is_loaded_bit_for_bit(variant: Variant, tmp_path: Path) -> None:
    model = trained(SMALL(identities=5, mean=(0.5, 0.4, 0.3), stride=8, **VARIANTS[variant]))
    weights.save(model, tmp_path / "new folder" / "w.safetensors", classifiers=True)
    loaded = weights.load(tmp_path / "new folder" / "w.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        images = drawn(2, 3, 64, 32)
        assert torch.equal(loaded(images).embedding, model(images).embedding)


def test_classifiers_stay_behind_unless_asked_for(tmp_path: Path) -> None:
    model = trained(SMALL(identities=5))
    weights.save(model, tmp_path / "w.safetensors")
    assert model.config.identities == 5
    loaded = weights.load(tmp_path / "w.safetensors")
    assert loaded.config.identities == 0
    assert loaded(drawn(1, 3, 64, 32)).identity_logits is None
    assert not any(name.startswith("classifiers") for name in load_file(tmp_path / "w.safetensors"))


def test_float16_halves_the_file_and_comes_back_as_float32(tmp_path: Path) -> None:
    model = trained(SMALL())
    weights.save(model, tmp_path / "full.safetensors")
    weights.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.51 * full
    loaded = weights.load(tmp_path / "half.safetensors").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor)


def test_the_header_says_what_the_weights_are(tmp_path: Path) -> None:
    learnt_from = {"reid": "drawn", "steps": 12, "nested": {"seed": 3}}
    config = SMALL(threshold=0.4, std=(0.2, 0.3, 0.4))
    weights.save(HPNet(config), tmp_path / "w.safetensors", training=learnt_from)
    header = weights.read_header(tmp_path / "w.safetensors")
    assert header.config == config
    assert header.parts == ("HEAD", "TORSO", "UPPER_LEGS", "LOWER_LEGS")
    assert header.training == learnt_from
    assert header.version == weights.metadata.version("hpnet")


def test_the_normalisation_in_the_header_is_used(tmp_path: Path) -> None:
    model = trained(SMALL(mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)))
    weights.save(model, tmp_path / "w.safetensors")
    loaded = weights.load(tmp_path / "w.safetensors")
    assert torch.equal(loaded.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(loaded.std.flatten(), torch.tensor([1.0, 0.5, 0.25]))


def test_another_record_of_training_changes_nothing_else(stored: Path, tmp_path: Path) -> None:
    told = {"reid": "drawn", "calibration": {"parts": 4}}
    weights.with_training(stored, tmp_path / "new.safetensors", told)
    before, after = weights.read_header(stored), weights.read_header(tmp_path / "new.safetensors")
    assert after.training == told
    assert (after.config, after.version) == (before.config, before.version)
    assert fingerprint(tmp_path / "new.safetensors") == fingerprint(stored)
    assert sha256_of(tmp_path / "new.safetensors") != sha256_of(stored)
    old, new = (weights.load(path).state_dict() for path in (stored, tmp_path / "new.safetensors"))
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def test_an_interrupted_save_leaves_what_was_there(
    stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = stored.read_bytes()

    def cut_off(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    for target in (stored, tmp_path / "new.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            weights.save(HPNet(SMALL()), target)
    assert list(tmp_path.iterdir()) == [stored]
    assert stored.read_bytes() == before


def test_what_json_cannot_hold_is_not_half_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        weights.save(HPNet(SMALL()), tmp_path / "w.safetensors", training={"path": Path()})
    assert list(tmp_path.iterdir()) == []


# --- files that cannot be used


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.safetensors", "no such weights file")
    refused(tmp_path, "no such weights file")


def test_bundled_weights_that_are_not_there_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "BUNDLED", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no compact weights are bundled"):
        weights.load("compact")


@pytest.mark.parametrize("name", weights.BUNDLED)
def test_bundled_weights_are_what_they_are_said_to_be(name: str) -> None:
    path = weights.locate(name)
    assert path.stat().st_size <= 16e6
    assert sha256_of(path) == weights.BUNDLED[name]
    _, header = (weights.load(name), weights.read_header(name)) if name == "compact" else load_teacher(name)
    assert header.training["human"] == "pascal"
    recipe = str(header.training["recipe"])
    assert "out: runs/" in recipe
    assert not [line for line in recipe.splitlines() if ": /" in line], "a path of somebody's machine"
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in card
    assert f"| {path.stat().st_size / 1e6:.1f} MB |" in card


@pytest.mark.real_data
def test_the_bundled_weights_know_people_again(market1501_root: Path) -> None:
    """Eight identities, one photo each by two cameras: most are nearest to themselves, and stand there whole."""
    photos = sorted((market1501_root / "query").glob("*.jpg"))
    pairs: dict[str, dict[str, Path]] = {}
    for path in photos:
        identity, camera = path.name.split("_")[:2]
        pairs.setdefault(identity, {}).setdefault(camera[:2], path)
    chosen = [list(each.values())[:2] for each in pairs.values() if len(each) > 1][:40:5]
    embedder = Embedder()
    one, other = (embedder([pair[place] for pair in chosen]) for place in (0, 1))
    nearest = part_distance(one, other).argmin(1)
    assert int((nearest == torch.arange(8)).sum()) >= 6
    assert float(one.visibility.double().mean()) > 0.85


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    refused(tmp_path / "w.safetensors", "it is empty")


@pytest.mark.parametrize("kept", [1, 7, 8, 200, -1])
def test_a_truncated_file_is_refused(kept: int, stored: Path) -> None:
    stored.write_bytes(stored.read_bytes()[:kept])
    refused(stored, "not a safetensors file")


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for length in (3, 100, 10_000):
        (tmp_path / "w.safetensors").write_bytes(chance.bytes(length))
        refused(tmp_path / "w.safetensors", "not a safetensors file")


class Trap:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])
def test_a_pickle_never_runs(kind: str, suffix: str, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / f"ckpt{suffix}"
    content = {"model": {"backbone.conv1.weight": Trap(sprung)}}
    if kind == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    model = HPNet(SMALL())
    refused(path, "pickle")
    refused(path, "refused", by=weights.from_authors)
    refused(path, by=partial(weights.load_imagenet, model))
    refused(path, by=lambda each: weights.load_folded_trunk(model, each, drawn(2, 3, 64, 32)))
    assert not sprung.exists()
    with path.open("rb") as file:
        pickle.load(file) if kind == "plain" else torch.load(file, weights_only=False)
    assert sprung.exists()  # the trap is a trap


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "not hpnet weights")
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "w.safetensors", "not hpnet weights", "'pt'")


def test_another_version_of_the_format_is_named(stored: Path) -> None:
    refused(rewritten(stored, format="hpnet-weights/2"), "hpnet-weights/2", weights.FORMAT)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "{"},
        {"config": "[]"},
        {"config": "3"},
        {"config": '{"trunk": "resnet18", "colour": 3}'},
        {"config": '{"trunk": "resnet12"}'},
        {"config": '{"trunk": ["resnet18"]}'},
        {"config": '{"size": 64}'},
        {"config": '{"size": [64]}'},
        {"config": '{"size": ["64", "32"]}'},
        {"config": '{"trunk": "resnet18", "branch": "compact", "mean": [0.1, 0.2]}'},
        {"config": '{"trunk": "resnet18", "branch": "compact", "parsing_channels": -1}'},
        {"config": '{"trunk": "resnet18", "branch": "compact", "parsing_channels": "many"}'},
        {"config": '{"trunk": "resnet18", "branch": "compact", "identities": 100000000000000}'},
        {"parts": "5"},
        {"parts": "[[1]]"},
        {"parts": "no json"},
        {"training": "[1]"},
        {"training": ""},
    ],
    ids=lambda changes: "-".join(changes) + "-" + "".join(changes.values())[-24:],
)
def test_a_damaged_header_is_refused(changes: dict[str, str], stored: Path) -> None:
    refused(rewritten(stored, **changes), "header")


def test_other_parts_are_refused(stored: Path) -> None:
    refused(rewritten(stored, parts=json.dumps(["HEAD", "TORSO", "LEGS"])), "made for the parts HEAD, TORSO, LEGS")


def test_missing_surplus_and_misshaped_tensors_are_named(stored: Path) -> None:
    with weights.safe_open(stored, framework="pt") as file:  # type: ignore[no-untyped-call]
        texts = file.metadata()
    state = load_file(stored)
    del state["necks.2.weight"]
    state["necks.7.weight"] = torch.zeros(3)
    state["trunk.bn1.bias"] = torch.zeros(65)
    save_file(state, stored, metadata=texts)
    line = refused(stored, "lacks 1 tensors, necks.2.weight", "unknown 1 tensors, necks.7.weight")
    assert "another shape of 1 tensors, trunk.bn1.bias" in line


# --- the authors' checkpoints


def checkpoint(trunk: str, variant: Variant, *, prefix: str = "", seed: int = 5) -> tuple[State, dict[str, Any]]:
    """Random weights in the authors' names, and the dictionary that their code saves."""
    state = random_state(authors_names(trunk, variant, identities=7, hidden=16), seed)
    return state, {"model": {f"{prefix}{name}": tensor for name, tensor in state.items()}}


def check_outputs(model: HPNet, state: State, variant: Variant) -> None:
    assert not model.training
    images = drawn(2, 3, 64, 32)
    with torch.no_grad():
        found, expected = model(images), reference_forward(state, images, variant)
    assert torch.equal(found.visibility, expected.visibility)
    if expected.parsing_logits is not None:
        assert_agree(found.parsing_logits, expected.parsing_logits)
    assert_agree(found.features, expected.features)
    assert_agree(found.embedding, expected.embedding)
    assert_agree(found.identity_logits, expected.identity_logits)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_the_authors_checkpoint_gives_the_authors_outputs(trunk: str, variant: Variant, tmp_path: Path) -> None:
    state, content = checkpoint(trunk, variant)
    beside = {"epoch": 300, "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}
    torch.save(content | beside, tmp_path / "ckpt.pth")
    model = weights.from_authors(tmp_path / "ckpt.pth")
    expected = ModelConfig(trunk=trunk, identities=7, parsing_channels=16, **VARIANTS[variant])  # type: ignore[arg-type]
    assert model.config.trunk == expected.trunk
    assert (model.config.share_conv5, model.config.baseline) == (expected.share_conv5, expected.baseline)
    assert model.config.identities == 7
    assert (model.config.mean, model.config.std) == ((0.486, 0.459, 0.408), (0.229, 0.224, 0.225))
    check_outputs(model, state, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_of_parallel_training_are_understood(variant: Variant, tmp_path: Path) -> None:
    state, content = checkpoint("resnet18", variant, prefix="module.")
    torch.save(content, tmp_path / "ckpt.pth")
    check_outputs(weights.from_authors(tmp_path / "ckpt.pth"), state, variant)


def test_a_bare_state_dict_is_understood(tmp_path: Path) -> None:
    state, content = checkpoint("resnet18", "hpnet")
    torch.save(content["model"], tmp_path / "ckpt.pth")
    check_outputs(weights.from_authors(tmp_path / "ckpt.pth"), state, "hpnet")


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes texts as Python 2.7 does, in which the authors' checkpoints were saved."""

    def save_text(self, text: str) -> None:
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode())
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, str: save_text}  # type: ignore[attr-defined]  # noqa: RUF012


def test_a_checkpoint_of_python_2_is_read(tmp_path: Path) -> None:
    state, content = checkpoint("resnet18", "baseline")
    module = ModuleType("python2pickle")
    module.Pickler = Python2Pickler  # type: ignore[attr-defined]
    module.dump = lambda value, file, protocol: Python2Pickler(file, protocol).dump(value)  # type: ignore[attr-defined]
    torch.save(content, tmp_path / "ckpt.pth", pickle_module=module, _use_new_zipfile_serialization=False)
    assert b"U\x15backbone.conv1.weight" in (tmp_path / "ckpt.pth").read_bytes()
    check_outputs(weights.from_authors(tmp_path / "ckpt.pth"), state, "baseline")


def test_batch_counts_may_be_missing(tmp_path: Path) -> None:
    """PyTorch before 0.4.1 did not keep them."""
    state, content = checkpoint("resnet18", "hpnet")
    torch.save({"model": {n: t for n, t in content["model"].items() if "num_batches" not in n}}, tmp_path / "ckpt.pth")
    check_outputs(weights.from_authors(tmp_path / "ckpt.pth"), state, "hpnet")


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": [1]}, {"model": {"fc.weight": torch.zeros(2)}}, [1]])
def test_other_files_are_no_checkpoints_of_the_authors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ckpt.pth")
    refused(tmp_path / "ckpt.pth", by=weights.from_authors)


def test_a_torn_or_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pth"
    refused(path, "no such weights file", by=weights.from_authors)
    torch.save(checkpoint("resnet18", "baseline")[1], path)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "refused", by=weights.from_authors)
    path.write_bytes(b"")
    refused(path, "refused", by=weights.from_authors)


def test_a_checkpoint_with_a_missing_or_strange_tensor_is_refused(tmp_path: Path) -> None:
    _, content = checkpoint("resnet18", "hpnet")
    del content["model"]["ps_head_list.1.mid_conv.weight"]
    torch.save(content, tmp_path / "ckpt.pth")
    refused(tmp_path / "ckpt.pth", "parsing_heads.1.conv1.weight", by=weights.from_authors)


# --- ImageNet


def imagenet(trunk: str = "resnet18") -> State:
    """A ResNet in torchvision's names, with its classifier of a thousand classes."""
    state = random_state(resnet_names(trunk, (0, 1, 2, 3, 4)), seed=8)
    wide = 2048 if trunk == "resnet50" else 512
    return state | {"fc.weight": torch.zeros(1000, wide), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_fills_the_trunk_and_every_branch(variant: Variant, suffix: str, tmp_path: Path) -> None:
    state, path = imagenet(), tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    model = HPNet(ModelConfig(trunk="resnet18", parsing_channels=8, **VARIANTS[variant]))
    others = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(("trunk.", "branches."))}
    weights.load_imagenet(model, path)
    own = model.state_dict()
    assert len(model.branches) == (4 if variant == "hpnet" else 1)
    for name, tensor in state.items():
        if name.startswith("layer4."):
            for branch in range(len(model.branches)):
                assert torch.equal(own[name.replace("layer4", f"branches.{branch}")], tensor), name
        elif not name.startswith("fc."):
            assert torch.equal(own[f"trunk.{name}"], tensor), name
    assert all(torch.equal(own[name], tensor) for name, tensor in others.items())


def test_branches_are_copies_that_learn_apart(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "resnet18.pth")
    model = HPNet(ModelConfig(trunk="resnet18", parsing_channels=8))
    weights.load_imagenet(model, tmp_path / "resnet18.pth")
    with torch.no_grad():
        model.branches[0][0].conv1.weight.zero_()  # type: ignore[index, union-attr, operator]
    assert bool(model.branches[1][0].conv1.weight.any())  # type: ignore[index, union-attr, operator]


def test_a_compact_branch_keeps_its_fresh_values(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "resnet18.pth")
    model = HPNet(SMALL())
    before = model.branches.state_dict()["0.0.conv1.weight"].clone()
    weights.load_imagenet(model, tmp_path / "resnet18.pth")
    assert torch.equal(model.branches.state_dict()["0.0.conv1.weight"], before)
    assert torch.equal(model.trunk.conv1.weight, imagenet()["conv1.weight"])


def test_imagenet_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "resnet.pth", HPNet(ModelConfig(trunk="resnet18", parsing_channels=8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load = partial(weights.load_imagenet, model)
    refused(path, "no such weights file", by=load)
    state = imagenet()
    del state["layer3.1.conv2.weight"]
    torch.save(state, path)
    refused(path, "resnet18", "trunk.layer3.1.conv2.weight", by=load)
    torch.save(imagenet("resnet50"), path)
    refused(path, "not the ImageNet weights of a resnet18", by=load)
    torch.save({1: torch.zeros(1)}, path)
    refused(path, by=load)
    torch.save({**imagenet(), "conv1.weight": "no tensor"}, path)
    refused(path, by=load)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


# --- the folded trunk


def folded(state: State) -> dict[str, np.ndarray]:
    """Convolutions that have swallowed their batch norm, by plain arithmetic."""
    arrays: dict[str, np.ndarray] = {}
    for name in (name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 4):
        norm = name.replace("conv", "bn") if "conv" in name else name.replace("downsample.0", "downsample.1")
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
        arrays[f"{name}.weight"] = (state[f"{name}.weight"] * gain[:, None, None, None]).numpy()
        arrays[f"{name}.bias"] = (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain).numpy()
    return arrays


def seen(model: HPNet, photos: Tensor, *, training: bool) -> Tensor:
    """What the trunk says of photos."""
    model.train(training)
    with torch.no_grad():
        return model.trunk((photos - model.mean) / model.std)


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folded") / "trunk.npz"
    np.savez(path, **folded(random_state(resnet_names("resnet18", (0, 1, 2, 3)), seed=4)))
    return path


@pytest.mark.parametrize("count", [20, 100])
def test_the_unfolded_trunk_says_what_the_original_said(trunk_file: Path, count: int) -> None:
    state = random_state(resnet_names("resnet18", (0, 1, 2, 3)), seed=4)
    model, photos = HPNet(SMALL()).train(), drawn(count, 3, 64, 32)
    weights.load_folded_trunk(model, trunk_file, photos)
    assert model.training
    expected = reference_trunk(state, "", (photos - model.mean) / model.std)
    norms = [module for module in model.trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 15
    for norm in norms:
        assert_agree(norm.weight.detach().square(), norm.running_var + norm.eps)  # type: ignore[operator]
    assert_agree(seen(model, photos, training=False), expected)
    # Fine-tuning starts where eval mode stands: batch statistics equal the running ones (data/README.md).
    assert_agree(seen(model, photos, training=True), expected, 1e-3)


def test_a_model_that_was_trained_before_can_start_again(trunk_file: Path) -> None:
    """Whatever the batch norms held before does not matter."""
    fresh, used, photos = HPNet(SMALL()), trained(SMALL(), seed=9), drawn(10, 3, 64, 32)
    for model in (fresh, used):
        weights.load_folded_trunk(model, trunk_file, photos)
    assert not used.training
    for name, tensor in fresh.trunk.state_dict().items():
        assert torch.equal(used.trunk.state_dict()[name], tensor), name


def test_a_folded_trunk_that_does_not_fit_is_refused(trunk_file: Path, tmp_path: Path) -> None:
    photos, path = drawn(2, 3, 64, 32), tmp_path / "trunk.npz"
    load = partial(weights.load_folded_trunk, HPNet(SMALL()), photos=photos)
    refused(path, "not an .npz", by=load)
    path.write_bytes(b"")
    refused(path, "not an .npz", by=load)
    path.write_bytes(trunk_file.read_bytes()[:5000])
    refused(path, "not an .npz", by=load)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path, "not an .npz", by=load)
    np.savez(path, **{"conv1.weight": np.array([{}], dtype=object)})
    refused(path, "not an .npz", by=load)
    arrays = dict(np.load(trunk_file))
    np.savez(path, **{name: array for name, array in arrays.items() if name != "layer2.0.conv1.bias"})
    refused(path, "layer2.0.conv1.bias", by=load)
    np.savez(path, **(arrays | {"layer2.0.conv1.weight": np.zeros((3, 3))}))
    refused(path, "layer2.0.conv1.weight", by=load)
    np.savez(path, **(arrays | {"layer2.0.conv1.bias": np.zeros(3)}))
    refused(path, "layer2.0.conv1.bias", by=load)
    np.savez(path, **(arrays | {"conv1.bias": np.array(["text"] * 64)}))
    refused(path, by=load)


@pytest.mark.real_data
def test_the_real_folded_trunk_sees_something(real_data: Path, market1501_root: Path) -> None:
    path = real_data / "resnet18_imagenet_trunk.npz"
    model = HPNet(ModelConfig(trunk="resnet18", branch="compact", size=(128, 64)))
    paths = find_photos(market1501_root / "query")[::60]
    photos = read_stack(paths, model.config.size).float() / 255
    weights.load_folded_trunk(model, path, photos)
    features = seen(model, photos, training=False)
    assert bool(features.isfinite().all())
    assert features.shape == (len(paths), 256, 8, 4)
    # Trained filters answer sparsely and each in its own way; dead or constant ones would not.
    assert 0.05 < float((features > 0).float().mean()) < 0.95
    assert float((features.std((0, 2, 3)) > 1e-3).float().mean()) > 0.9
    assert_agree(seen(model, photos, training=True), features, 1e-2)
    # Photos of one person (neighbours in the list) are more alike than photos of strangers.
    names = [each.name[:4] for each in find_photos(market1501_root / "query")[:200]]
    photos = read_stack(find_photos(market1501_root / "query")[:200], model.config.size).float() / 255
    vectors = torch.nn.functional.normalize(seen(model, photos, training=False).mean((2, 3)), dim=1)
    same = torch.tensor([[a == b for b in names] for a in names])
    alike = vectors @ vectors.T
    assert float(alike[same & ~torch.eye(200, dtype=torch.bool)].mean()) > float(alike[~same].mean()) + 0.02


def test_learnt_weights_start_another_run_of_the_same_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = ModelConfig("resnet18", "compact", parsing_channels=8, identities=3, size=(64, 32))
    learnt = HPNet(small)
    weights.save(learnt, tmp_path / "w.safetensors")
    assert weights.is_own(tmp_path / "w.safetensors")
    further = HPNet(replace(small, identities=7, size=(96, 48), threshold=0.4))
    fresh = further.classifiers[0].weight.detach().clone()
    weights.load_learnt(further, tmp_path / "w.safetensors")
    for name, tensor in learnt.state_dict().items():
        if not name.startswith("classifiers."):
            assert torch.equal(further.state_dict()[name], tensor), name
    assert torch.equal(further.classifiers[0].weight, fresh)
    with pytest.raises(weights.WeightsError, match="not the recipe's"):
        weights.load_learnt(HPNet(replace(small, branch="conv5")), tmp_path / "w.safetensors")


def test_a_checkpoint_starts_another_run_with_its_classifiers_where_they_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = ModelConfig("resnet18", "compact", parsing_channels=8, identities=3, size=(64, 32))
    learnt = HPNet(small)
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"model": learnt.state_dict(), "optimiser": {}, "step": 7}, checkpoint)
    assert weights.is_own(checkpoint)
    same, more = HPNet(small), HPNet(replace(small, identities=7))
    fresh = more.classifiers[0].weight.detach().clone()
    for further in (same, more):
        weights.load_learnt(further, checkpoint)
        assert torch.equal(further.state_dict()["necks.0.weight"], learnt.state_dict()["necks.0.weight"])
    assert torch.equal(same.classifiers[0].weight, learnt.classifiers[0].weight)
    assert torch.equal(more.classifiers[0].weight, fresh)
    torch.save(learnt.state_dict(), tmp_path / "imagenet.pt")
    assert not weights.is_own(tmp_path / "imagenet.pt")


def test_a_weights_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    weights.save(HPNet(ModelConfig("resnet18", "compact", size=(64, 32))), tmp_path / "w.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
