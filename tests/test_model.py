from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpnet.model import HPNet, ModelConfig, ModelOutput, branch_channels
from reference import (
    DEPTHS,
    MEAN,
    STD,
    State,
    Variant,
    authors_names,
    our_name,
    random_state,
    reference_forward,
    reference_stage,
    reference_trunk,
    resnet_names,
)

SMALL = partial(ModelConfig, trunk="resnet18", branch="compact", size=(64, 32), parsing_channels=8)
VARIANTS: dict[Variant, dict[str, bool]] = {"hpnet": {}, "share": {"share_conv5": True}, "baseline": {"baseline": True}}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def assert_agree(found: Tensor, expected: Tensor, digits: float = 1e-5) -> None:
    """Equal but for rounding, measured by the size of the values."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= digits * float(expected.abs().max())


def trained(config: ModelConfig, seed: int = 0) -> HPNet:
    """A model none of whose values is the fresh one."""
    model = HPNet(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(random_state(shapes, seed))
    for neck in model.necks:
        torch.nn.init.zeros_(neck.bias)  # type: ignore[arg-type]
    return model.eval()


SEVERAL_PARTS = trained(SMALL())


def blinded(model: HPNet) -> HPNet:
    """The same model, which finds no part anywhere."""
    for head in model.parsing_heads:
        torch.nn.init.constant_(head.conv2.bias, -1e4)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_forward_equals_the_authors_network(trunk: str, variant: Variant) -> None:
    state = random_state(authors_names(trunk, variant, identities=7, hidden=16), seed=3)
    config = ModelConfig(trunk=trunk, identities=7, parsing_channels=16, **VARIANTS[variant])  # type: ignore[arg-type]
    model = HPNet(config).eval()
    model.load_state_dict({our_name(name): tensor for name, tensor in state.items()})
    images = drawn(3, 3, 64, 32)
    check_parity(model, state, images, variant, digits=1e-5)
    model.double().mean, model.std = (torch.tensor(each).double().view(3, 1, 1) for each in (MEAN, STD))
    exact = {name: tensor.double() for name, tensor in state.items()}
    check_parity(model, exact, images.double(), variant, digits=1e-12)


def check_parity(model: HPNet, state: State, images: Tensor, variant: Variant, digits: float) -> None:
    with torch.no_grad():
        found: ModelOutput = model(images)
        expected = reference_forward(state, images, variant)
    assert torch.equal(found.visibility, expected.visibility)
    if expected.parsing_logits is not None:
        assert found.parsing_logits is not None
        assert 0 < int((expected.parsing_logits > 0).sum()) < expected.parsing_logits.numel()  # masks are put to use
        assert_agree(found.parsing_logits, expected.parsing_logits, digits)
    assert found.identity_logits is not None
    assert float(expected.features.std()) > 0.1
    assert_agree(found.features, expected.features, digits)
    assert_agree(found.embedding, expected.embedding, digits)
    assert_agree(found.identity_logits, expected.identity_logits, digits)


def test_the_compact_branch_is_two_bottlenecks_of_stride_one() -> None:
    model = trained(SMALL())
    images = drawn(2, 3, 64, 32)
    state = model.state_dict()
    with torch.no_grad():
        normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        shared = reference_trunk(state, "trunk.", normalised)
        expected = reference_stage(state, "branches.2", shared)
        found = model.branches[2](shared)
    assert found.shape == (2, 256, 4, 2)
    assert_agree(found, expected)
    assert [len(branch) for branch in model.branches] == [2, 2, 2, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("branch", ["conv5", "compact"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("identities", [0, 5])
def test_shapes(branch: str, variant: Variant, identities: int) -> None:
    config = SMALL(branch=branch, identities=identities, **VARIANTS[variant])
    p, d = (1 if variant == "baseline" else 4), (256 if branch == "compact" else 512)
    output = HPNet(config).eval()(drawn(3, 3, 64, 32))
    assert branch_channels(config) == d
    assert output.features.shape == output.embedding.shape == (3, p, d)
    assert output.visibility.shape == (3, p)
    assert output.visibility.dtype == torch.bool
    if variant == "baseline":
        assert output.parsing_logits is None
        assert bool(output.visibility.all())
    else:
        assert output.parsing_logits.shape == (3, 4, 4, 2)
    assert (output.identity_logits is None) if identities == 0 else (output.identity_logits.shape == (3, p, 5))


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (384, 128), (50, 35)])
def test_a_cell_is_sixteen_pixels_or_eight(size: tuple[int, int], stride: Literal[8, 16]) -> None:
    config = SMALL(stride=stride, size=size)
    logits = HPNet(config).eval().parse(drawn(1, 3, *size))
    assert tuple(logits.shape[2:]) == config.cells == tuple(-(-pixels // stride) for pixels in size)


def test_the_papers_cells() -> None:
    assert ModelConfig().cells == (24, 8)  # authors_code.md


@pytest.mark.parametrize("trunk", DEPTHS)
def test_names_and_shapes_are_torchvisions(trunk: str) -> None:
    with torch.device("meta"):
        model = HPNet(ModelConfig(trunk=trunk))  # type: ignore[arg-type]
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {f"trunk.{name}": shape for name, shape in resnet_names(trunk, (0, 1, 2, 3)).items()}
    for part in range(4):
        conv5 = resnet_names(trunk, (4,)).items()
        expected |= {name.replace("layer4", f"branches.{part}"): shape for name, shape in conv5}
    assert {name: shape for name, shape in found.items() if name.startswith(("trunk.", "branches."))} == expected


def test_torchvisions_names_by_heart() -> None:
    """A few names written down by hand, so that the list above is not only a rule that agrees with itself."""
    fifty, eighteen = resnet_names("resnet50", (0, 1, 2, 3, 4)), resnet_names("resnet18", (0, 1, 2, 3, 4))
    assert len(fifty) == 318  # 320 tensors of torchvision's resnet50, less fc.weight and fc.bias
    assert len(eighteen) == 120
    assert fifty["conv1.weight"] == (64, 3, 7, 7)
    assert fifty["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert fifty["layer3.5.bn3.running_var"] == (1024,)
    assert fifty["layer4.2.conv2.weight"] == (512, 512, 3, 3)
    assert "layer1.0.downsample.0.weight" not in eighteen
    assert eighteen["layer4.0.downsample.1.bias"] == (512,)
    assert sum(torch.Size(s).numel() for n, s in fifty.items() if not n.endswith(("mean", "var", "tracked"))) == (
        25_557_032 - 2048 * 1000 - 1000  # torchvision's published count, less fc
    )


def test_invisible_parts_are_zero_and_only_they() -> None:
    model = trained(SMALL(identities=3))
    torch.nn.init.constant_(model.parsing_heads[1].conv2.bias, -1e4)  # type: ignore[arg-type]
    torch.nn.init.constant_(model.parsing_heads[2].conv2.bias, 1e4)  # type: ignore[arg-type]
    output = model(drawn(4, 3, 64, 32))
    assert not bool(output.visibility[:, 1].any())
    assert bool(output.visibility[:, 2].all())
    assert bool((output.features[:, 1] == 0).all())
    assert bool((output.features[:, 2] > 0).any(-1).all())
    assert bool(((output.features > 0).any(-1) == output.visibility).all())
    assert bool((output.features >= 0).all())
    for tensor in (output.features, output.embedding, output.identity_logits):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("fresh", [True, False])
def test_training_is_finite_when_no_part_is_visible(fresh: bool) -> None:
    model = blinded(HPNet(SMALL(identities=3)) if fresh else trained(SMALL(identities=3))).train()
    output = model(drawn(4, 3, 64, 32))
    assert not bool(output.visibility.any())
    assert bool((output.features == 0).all())
    sums = (output.features.sum(), output.embedding.square().sum(), output.identity_logits.square().sum())
    (sum(sums) + output.parsing_logits.clamp(min=-1).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
    assert bool(model.trunk.conv1.weight.grad.isfinite().all())  # type: ignore[union-attr]
    for name, buffer in model.named_buffers():
        assert bool(buffer.isfinite().all()), name


def test_no_gradient_flows_through_the_masks() -> None:
    """Features teach branch and trunk, never the parsing heads: the mask is a decision (Section 3.1)."""
    model = trained(SMALL()).train()
    model(drawn(4, 3, 64, 32)).features.sum().backward()
    for parameter in model.parsing_heads.parameters():
        assert parameter.grad is None or not bool(parameter.grad.any())
    assert bool(model.branches[0][0].conv1.weight.grad.any())  # type: ignore[index]


@given(st.floats(0.05, 0.95))
@settings(max_examples=10, deadline=None)
def test_a_part_is_visible_where_its_probability_exceeds_the_threshold(threshold: float) -> None:
    model = SEVERAL_PARTS
    model.config = replace(model.config, threshold=threshold)
    with torch.no_grad():
        output = model(drawn(6, 3, 64, 32))
    assert torch.equal(output.visibility, (output.parsing_logits.sigmoid() > threshold).flatten(2).any(2))


def test_the_neck_has_no_bias_to_learn() -> None:
    model = HPNet(SMALL(identities=3))
    assert all(not neck.bias.requires_grad and not neck.bias.any() for neck in model.necks)  # type: ignore[union-attr]
    assert all(neck.weight.requires_grad for neck in model.necks)  # type: ignore[union-attr]


def test_masks_and_classes_start_undecided() -> None:
    """The last layers start near 0, as the authors' do; the 3x3 convolution of a head does not (see _initialise)."""
    torch.manual_seed(0)
    model = HPNet(SMALL(identities=50, parsing_channels=64))
    lasts = [model.get_submodule(f"parsing_heads.{part}.conv2") for part in range(4)]
    for layers, tolerance in ((lasts, 0.2), (list(model.classifiers), 0.03)):
        weights = torch.cat([layer.get_parameter("weight").detach().flatten() for layer in layers])
        assert float(weights.std()) == pytest.approx(0.001, rel=tolerance)
        assert not any(bool(layer.get_parameter("bias").any()) for layer in layers)
    assert all(head.conv1.bias is None for head in model.parsing_heads)
    logits = model.parse(drawn(4, 3, 64, 32)).detach()
    assert float(logits.abs().max()) < 0.1
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    assert all(bool((norm.weight == 1).all()) for norm in norms)


def test_normalisation_travels_with_the_model() -> None:
    model = HPNet(SMALL())
    buffers = dict(model.named_buffers())
    torch.testing.assert_close(buffers["mean"].flatten(), torch.tensor([0.486, 0.459, 0.408]))
    torch.testing.assert_close(buffers["std"].flatten(), torch.tensor([0.229, 0.224, 0.225]))
    entering: list[Tensor] = []
    model.trunk.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    images = torch.tensor([0.486, 0.459, 0.408]).view(1, 3, 1, 1).expand(1, 3, 64, 32)
    model.eval()(images)
    assert float(entering[0].abs().max()) < 1e-6
    model(torch.ones(1, 3, 64, 32))
    torch.testing.assert_close(entering[1][0, :, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_sizes_of_the_branches_are_as_documented() -> None:
    def millions(branch: str) -> float:
        model = HPNet(SMALL(branch=branch))
        return sum(parameter.numel() for parameter in model.branches[0].parameters()) / 1e6

    assert round(millions("compact"), 2) == 0.43
    assert round(millions("conv5"), 1) == 8.4


@pytest.mark.parametrize("branch", ["conv5", "compact"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_groups_share_out_what_is_learnt(branch: str, variant: Variant) -> None:
    model = HPNet(SMALL(branch=branch, identities=3, **VARIANTS[variant]))
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    old, new = ([names.pop(id(parameter)) for parameter in group] for group in model.parameter_groups())
    assert not names  # each stands in one group, and in one only
    imagenet = ("trunk.",) if branch == "compact" else ("trunk.", "branches.")
    assert all(name.startswith(imagenet) for name in old)
    assert not any(name.startswith(imagenet) for name in new)


@pytest.mark.parametrize("share", [False, True])
def test_parse_says_what_forward_says(share: bool) -> None:
    model = trained(SMALL(share_conv5=share))
    images = drawn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model.parse(images), model(images).parsing_logits)


def test_the_baseline_does_not_parse() -> None:
    with pytest.raises(ValueError, match="baseline has no parsing heads"):
        HPNet(SMALL(baseline=True)).parse(drawn(1, 3, 64, 32))


@pytest.mark.parametrize("kind", ["not an image", "grey", "one image without batch"])
def test_images_of_another_shape_are_refused(kind: str) -> None:
    shape = {"not an image": (2, 4), "grey": (2, 1, 64, 32), "one image without batch": (3, 64, 32)}[kind]
    with pytest.raises(Exception, match="parameter 'images'"):
        HPNet(SMALL())(drawn(*shape))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = trained(SMALL())
    images = drawn(5, 3, 64, 32)
    with torch.no_grad():
        together = model(images).embedding
        alone = torch.cat([model(image[None]).embedding for image in images])
    assert_agree(together, alone)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"share_conv5": True, "baseline": True}, "share_conv5"),
        ({"size": (16, 64)}, "size"),
        ({"identities": -1}, "identities"),
        ({"threshold": 1.0}, "threshold"),
        ({"visible_cells": 0}, "visible_cells"),
        ({"global_branch": True, "baseline": True}, "global_branch"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        ModelConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [1, 2, 5])
def test_a_part_of_too_few_cells_is_not_visible(least: int) -> None:
    model = trained(SMALL(stride=8))
    images = drawn(8, 3, 64, 32)
    cells = (model(images).parsing_logits.sigmoid() > model.config.threshold).sum((2, 3))
    assert {bool(each) for each in (cells >= least).flatten()} == {True, False} or least == 1
    few = HPNet(replace(model.config, visible_cells=least)).eval()
    few.load_state_dict(model.state_dict())
    output = few(images)
    assert torch.equal(output.visibility, cells >= least)
    assert not bool(output.features[~output.visibility].any())
    assert torch.equal(output.features[output.visibility], model(images).features[output.visibility])


@pytest.mark.parametrize("branch", ["conv5", "compact"])
def test_a_global_branch_teaches_in_train_mode_alone(branch: Literal["conv5", "compact"]) -> None:
    config = SMALL(branch=branch, identities=5, global_branch=True)
    model = HPNet(config)
    images = drawn(3, 3, 64, 32)
    output = model(images)
    assert output.whole.features.shape == (3, 1, branch_channels(config))
    assert output.whole.identity_logits.shape == (3, 1, 5)
    assert output.features.shape[1] == 4
    output.whole.identity_logits.square().sum().backward()
    assert model.trunk.conv1.weight.grad is not None
    assert model.branches[0][0].conv1.weight.grad is None  # type: ignore[index]
    assert model.eval()(images).whole is None
    old, new = model.parameter_groups()
    assert len(old) + len(new) == len([each for each in model.parameters() if each.requires_grad])
    rated_old = {id(each) for each in old}
    first = next(model.whole.branch.parameters())  # type: ignore[union-attr]
    assert (id(first) in rated_old) == (branch == "conv5"), "Conv5 starts from ImageNet, a compact branch from nothing"
    assert ("whole.branch" in model.conv5_names) == (branch == "conv5")


def test_without_a_global_branch_there_is_nothing_of_it() -> None:
    model = HPNet(SMALL(identities=5))
    assert model(drawn(2, 3, 64, 32)).whole is None
    assert not [name for name in model.state_dict() if name.startswith("whole")]
