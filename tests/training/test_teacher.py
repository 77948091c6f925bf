from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpnet import weights
from hpnet.data.parsing import read_pascal, stack
from hpnet.model import ResNetTrunk
from hpnet.training.teach import intersection_over_union, predicted
from hpnet.training.teacher import (
    CLASSES,
    ChannelAttention,
    PositionAttention,
    Teacher,
    TeacherConfig,
    TeacherOutput,
    load_teacher,
    probabilities,
    save_teacher,
    teacher_loss,
)
from hpnet.weights import WeightsError

SMALL = TeacherConfig(trunk="resnet18", layer4=False, size=(64, 32))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("layer4", [False, True])
def test_three_outputs_at_an_eighth_of_the_size(layer4: bool) -> None:
    model = Teacher(TeacherConfig(trunk="resnet18", layer4=layer4, size=(64, 32)))
    output = model(images())
    assert [tuple(each.shape) for each in output] == [(2, CLASSES, 8, 4)] * 3
    assert sum(each.numel() for each in model.parameters()) < (13e6 if layer4 else 4e6)


def test_position_attention_is_that_of_the_paper() -> None:
    """Fu et al., Eq. 1 and 2, in float64 NumPy, cell by cell."""
    torch.manual_seed(0)
    layer = PositionAttention(16).double()
    nn.init.constant_(layer.gain, 0.7)
    features = torch.randn(2, 16, 3, 2, dtype=torch.float64)

    def linear(convolution: nn.Conv2d, cells: np.ndarray) -> np.ndarray:
        assert convolution.bias is not None
        return cells @ convolution.weight.detach().numpy()[:, :, 0, 0].T + convolution.bias.detach().numpy()

    for row, own in enumerate(features.numpy()):
        cells = own.reshape(16, 6).T
        query, key, value = (linear(each, cells) for each in (layer.query, layer.key, layer.value))
        weight = softmax(query @ key.T)  # of cell i for cell j, over i
        expected = 0.7 * np.stack([weight[j] @ value for j in range(6)]) + cells
        np.testing.assert_allclose(layer(features)[row].detach().numpy().reshape(16, 6).T, expected, atol=1e-12)


def test_channel_attention_weighs_unlike_channels() -> None:
    layer = ChannelAttention().double()
    nn.init.constant_(layer.gain, 0.3)
    features = torch.randn(1, 5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    flat = features[0].numpy().reshape(5, 12)
    affinity = flat @ flat.T
    expected = 0.3 * softmax(affinity.max(1, keepdims=True) - affinity) @ flat + flat
    np.testing.assert_allclose(layer(features)[0].detach().numpy().reshape(5, 12), expected, atol=1e-12)


def test_attention_starts_as_the_identity() -> None:
    features = torch.randn(2, 16, 3, 2)
    for layer in (PositionAttention(16), ChannelAttention()):
        assert torch.equal(layer(features), features)


def test_the_trunk_is_dilated_and_keeps_its_parameters() -> None:
    model = Teacher(TeacherConfig(trunk="resnet50", size=(64, 32)))
    assert model.trunk.layer3[0].conv2.dilation == (1, 1)
    assert model.trunk.layer3[1].conv2.dilation == (2, 2)
    assert model.layer4[0].conv2.dilation == (2, 2)
    assert model.layer4[2].conv2.dilation == (4, 4)
    plain = ResNetTrunk("resnet50", stride=16).state_dict()
    assert {name: each.shape for name, each in model.trunk.state_dict().items()} == {
        name: each.shape for name, each in plain.items()
    }


def test_a_dilated_stage_sees_as_far_as_one_behind_a_larger_stride() -> None:
    """On a picture that is constant in 2 x 2 cells, dilation 2 at stride 8 says what stride 16 says."""
    torch.manual_seed(3)
    model = Teacher(SMALL).eval()
    block = model.trunk.layer3[1]
    coarse = torch.randn(1, 256, 6, 4)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    dense = block(fine)
    for layer in (block.conv1, block.conv2):
        layer.dilation = layer.padding = (1, 1)
    torch.testing.assert_close(dense[:, :, ::2, ::2], block(coarse), rtol=1e-4, atol=1e-4)


def test_the_loss_is_cross_entropy_of_three_outputs() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = [torch.randn(2, CLASSES, 4, 3, generator=generator) for _ in range(3)]
    truth = torch.randint(0, CLASSES, (2, 4, 3), generator=generator, dtype=torch.uint8)
    expected = 0.0
    for each in logits:
        chosen = np.log(softmax(each.double().permute(0, 2, 3, 1).numpy()))
        expected -= np.take_along_axis(chosen, truth.numpy()[..., None].astype(np.int64), -1).mean()
    assert float(teacher_loss(TeacherOutput(*logits), truth)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(probabilities(TeacherOutput(*logits), (8, 6)).sum(1), torch.ones(2, 8, 6))


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Teacher(SMALL).eval()
    save_teacher(model, tmp_path / "teacher.safetensors", {"human": "dolls"})
    again, header = load_teacher(tmp_path / "teacher.safetensors")
    assert not again.training
    assert asdict(header.config) == asdict(SMALL)
    assert header.training == {"human": "dolls"}
    for one, other in zip(model(images()), again(images()), strict=True):
        assert torch.equal(one, other)


def test_a_teacher_is_no_hpnet_and_an_hpnet_no_teacher(tmp_path: Path) -> None:
    save_teacher(Teacher(SMALL), tmp_path / "teacher.safetensors", {})
    with pytest.raises(WeightsError, match=r"teacher\.safetensors: not hpnet weights \(format 'hpnet-teacher/1'"):
        weights.load(tmp_path / "teacher.safetensors")
    model = weights.HPNet(weights.ModelConfig(trunk="resnet18", branch="compact", size=(64, 32)))
    weights.save(model, tmp_path / "hpnet.safetensors")
    with pytest.raises(WeightsError, match=r"hpnet\.safetensors: not weights of a teacher \(format 'hpnet-weights/1'"):
        load_teacher(tmp_path / "hpnet.safetensors")


def test_imagenet_fills_trunk_and_layer4(tmp_path: Path) -> None:
    donor = Teacher(TeacherConfig(trunk="resnet18", size=(64, 32)))
    named = {name.removeprefix("trunk."): each for name, each in donor.state_dict().items()}
    kept = {name: each for name, each in named.items() if name.startswith(("conv1", "bn1", "layer"))}
    torch.save(kept, tmp_path / "resnet18.pth")
    model = Teacher(TeacherConfig(trunk="resnet18", size=(64, 32)))
    weights.load_imagenet(model, tmp_path / "resnet18.pth")
    assert torch.equal(model.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
    assert torch.equal(model.trunk.layer1[0].conv1.weight, donor.trunk.layer1[0].conv1.weight)


def test_both_rates_are_for_all_parameters() -> None:
    model = Teacher(TeacherConfig(trunk="resnet18", size=(64, 32)))
    old, new = model.parameter_groups()
    assert len(old) + len(new) == len(list(model.parameters()))
    assert {id(each) for each in old} == {id(e) for part in (model.trunk, model.layer4) for e in part.parameters()}


@pytest.mark.real_data
def test_the_bundled_teacher_finds_parts_on_held_out_people(pascal_root: Path) -> None:
    model, _ = load_teacher("teacher")
    photos, truth = stack(islice(read_pascal(pascal_root, "val", model.config.size), 48))
    scores = intersection_over_union(truth, predicted(model, photos))
    assert (scores["head"] or 0) > 0.6
    assert (scores["mean_parts"] or 0) > 0.5
