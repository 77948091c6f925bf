"""The authors' network a second time, written from `authors_code.md` alone: names and shapes of its checkpoint, and its
forward pass as plain functions on that checkpoint. It shares no line with hpnet.model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from torch import Tensor

Variant = Literal["hpnet", "share", "baseline"]
State = dict[str, Tensor]

MEAN = (0.486, 0.459, 0.408)
STD = (0.229, 0.224, 0.225)
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
OURS = (
    ("backbone.layer4_list.", "branches."),
    ("backbone.layer4.", "branches.0."),
    ("backbone.", "trunk."),
    ("bn_list.", "necks."),
    ("bn.", "necks.0."),
    ("cls_list.", "classifiers."),
    ("cls.", "classifiers.0."),
    ("ps_head_list.", "parsing_heads."),
)
HEAD = {"mid_conv": "conv1", "bn": "bn1", "conv": "conv2"}


@dataclass(frozen=True)
class Expected:
    """What the authors' network says of a few images."""

    parsing_logits: Tensor | None
    visibility: Tensor
    features: Tensor
    embedding: Tensor
    identity_logits: Tensor


def our_name(name: str) -> str:
    """A name of the authors' state_dict, in hpnet's words."""
    for theirs, ours in OURS:
        if name.startswith(theirs):
            renamed = ours + name.removeprefix(theirs)
            break
    if renamed.startswith("parsing_heads."):
        list_name, number, layer, kind = renamed.split(".")
        return f"{list_name}.{number}.{HEAD[layer]}.{kind}"
    return renamed


def resnet_names(trunk: str, stages: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """torchvision's names of a ResNet's tensors and their shapes: the stem (stage 0) and the chosen stages 1..4."""
    deep = trunk in ("resnet50", "resnet101")
    grow = 4 if deep else 1
    found: dict[str, tuple[int, ...]] = {}
    if 0 in stages:
        _convolution(found, "conv1", "bn1", (64, 3, 7, 7))
    for stage in (each for each in stages if each > 0):
        width = 64 * 2 ** (stage - 1)
        for block in range(DEPTHS[trunk][stage - 1]):
            entering = width * grow if block else (64 if stage == 1 else width // 2 * grow)
            place = f"layer{stage}.{block}"
            kernels = [(entering, 1), (width, 3), (width, 1)] if deep else [(entering, 3), (width, 3)]
            for number, (channels, kernel) in enumerate(kernels, 1):
                leaving = width * grow if deep and number == 3 else width
                _convolution(found, f"{place}.conv{number}", f"{place}.bn{number}", (leaving, channels, kernel, kernel))
            if block == 0 and (stage > 1 or deep):
                short = (width * grow, entering, 1, 1)
                _convolution(found, f"{place}.downsample.0", f"{place}.downsample.1", short)
    return found


def _convolution(found: dict[str, tuple[int, ...]], name: str, norm: str, shape: tuple[int, ...]) -> None:
    found[f"{name}.weight"] = shape
    _norm(found, norm, shape[0])


def _norm(found: dict[str, tuple[int, ...]], name: str, channels: int) -> None:
    found |= {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}
    found[f"{name}.num_batches_tracked"] = ()


def authors_names(trunk: str, variant: Variant, identities: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the authors' state_dict and its shape."""
    channels = 2048 if trunk in ("resnet50", "resnet101") else 512
    found = {f"backbone.{name}": shape for name, shape in resnet_names(trunk, (0, 1, 2, 3)).items()}
    conv5 = [name.removeprefix("layer4.") for name in resnet_names(trunk, (4,))]
    shapes = list(resnet_names(trunk, (4,)).values())
    places = [f"layer4_list.{j}" for j in range(4)] if variant == "hpnet" else ["layer4"]
    for place in places:
        found |= {f"backbone.{place}.{name}": shape for name, shape in zip(conv5, shapes, strict=True)}
    for end in [""] if variant == "baseline" else [f"_list.{j}" for j in range(4)]:
        _norm(found, f"bn{end}", channels)
        found |= {f"cls{end}.weight": (identities, channels), f"cls{end}.bias": (identities,)}
    for j in range(0 if variant == "baseline" else 4):
        _convolution(found, f"ps_head_list.{j}.mid_conv", f"ps_head_list.{j}.bn", (hidden, channels, 3, 3))
        found |= {
            f"ps_head_list.{j}.conv.weight": (1, hidden, 1, 1),
            f"ps_head_list.{j}.conv.bias": (1,),
        }
    return found


def random_state(names: dict[str, tuple[int, ...]], seed: int) -> State:
    """Values as after training: no batch norm is the identity, and signals neither die nor explode."""
    chance = torch.Generator().manual_seed(seed)

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(1234)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            # What a block adds to its input is small, or fifty layers would double the signal sixteen times.
            size = 0.3 if re.search(r"\.\d+\.bn[23]\.weight$", name) else 1.0
            return size * (torch.rand(shape, generator=chance) + 0.5)
        if len(shape) == 1:
            drawn = 0.2 * torch.randn(shape, generator=chance)
            # The neck's bias stays 0 (authors_code.md).
            return torch.zeros(shape) if re.search(r"^(bn|bn_list\.\d)\.bias$", name) else drawn
        scale = math.sqrt(2 / math.prod(shape[1:]))
        return scale * torch.randn(shape, generator=chance)

    return {name: value(name, shape) for name, shape in names.items()}


def reference_forward(state: State, images: Tensor, variant: Variant) -> Expected:
    """The authors' test-time forward pass on plain RGB in [0, 1]."""
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    shared = reference_trunk(state, "backbone.", normalised)
    if variant == "hpnet":
        maps = [_stage(state, f"backbone.layer4_list.{j}", shared, stride=1) for j in range(4)]
    else:
        maps = [_stage(state, "backbone.layer4", shared, stride=1)] * (4 if variant == "share" else 1)
    if variant == "baseline":
        features = [maps[0].flatten(2).max(2).values]
        logits, visibility, ends = None, torch.ones(len(images), 1, dtype=torch.bool), [""]
    else:
        ends = [f"_list.{j}" for j in range(4)]
        logits = torch.cat([_head(state, f"ps_head_list.{j}", maps[j]) for j in range(4)], 1)
        mask = (torch.sigmoid(logits) > 0.5).float()
        features = [(maps[j] * mask[:, j : j + 1]).flatten(2).max(2).values for j in range(4)]
        visibility = mask.flatten(2).max(2).values > 0
    embedding = [_normed(state, f"bn{end}", each) for end, each in zip(ends, features, strict=True)]
    identity_logits = [
        F.linear(each, state[f"cls{end}.weight"], state[f"cls{end}.bias"])
        for end, each in zip(ends, embedding, strict=True)
    ]
    return Expected(
        parsing_logits=logits,
        visibility=visibility,
        features=torch.stack(features, 1),
        embedding=torch.stack(embedding, 1),
        identity_logits=torch.stack(identity_logits, 1),
    )


def reference_trunk(state: State, prefix: str, normalised: Tensor) -> Tensor:
    """conv1 .. layer3."""
    stem = F.conv2d(normalised, state[f"{prefix}conv1.weight"], stride=2, padding=3)
    features = F.max_pool2d(F.relu(_normed(state, f"{prefix}bn1", stem)), 3, stride=2, padding=1)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        features = _stage(state, f"{prefix}layer{stage}", features, stride)
    return features


def reference_stage(state: State, place: str, features: Tensor) -> Tensor:
    """A stage of stride 1 on its own."""
    return _stage(state, place, features, stride=1)


def _stage(state: State, place: str, features: Tensor, stride: int) -> Tensor:
    block = 0
    while f"{place}.{block}.conv1.weight" in state:
        features = _block(state, f"{place}.{block}", features, stride if block == 0 else 1)
        block += 1
    return features


def _block(state: State, place: str, features: Tensor, stride: int) -> Tensor:
    """A residual block; torchvision strides in the first 3x3 convolution."""
    count = 3 if f"{place}.conv3.weight" in state else 2
    inner = features
    for number in range(1, count + 1):
        weight = state[f"{place}.conv{number}.weight"]
        kernel = weight.shape[-1]
        strided = number == (2 if count == 3 else 1)
        inner = F.conv2d(inner, weight, stride=stride if strided else 1, padding=kernel // 2)
        inner = _normed(state, f"{place}.bn{number}", inner)
        inner = inner if number == count else F.relu(inner)
    if f"{place}.downsample.0.weight" in state:
        features = F.conv2d(features, state[f"{place}.downsample.0.weight"], stride=stride)
        features = _normed(state, f"{place}.downsample.1", features)
    return F.relu(inner + features)


def _head(state: State, place: str, features: Tensor) -> Tensor:
    hidden = F.conv2d(features, state[f"{place}.mid_conv.weight"], padding=1)
    hidden = F.relu(_normed(state, f"{place}.bn", hidden))
    return F.conv2d(hidden, state[f"{place}.conv.weight"], state[f"{place}.conv.bias"])


def _normed(state: State, name: str, features: Tensor) -> Tensor:
    kinds = ("running_mean", "running_var", "weight", "bias")
    mean, variance, gain, bias = (state[f"{name}.{kind}"].view(1, -1, *[1] * (features.ndim - 2)) for kind in kinds)
    return (features - mean) / torch.sqrt(variance + 1e-5) * gain + bias
