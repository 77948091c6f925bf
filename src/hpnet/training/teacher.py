"""The teacher: DANet, which labels the body parts of ReID photos before training (Section 4.2; Fu et al., CVPR 2019).

A dilated ResNet; on top of it one branch where every cell attends to the cells like it (position attention) and one
where every channel attends to the channels unlike it (channel attention). Each branch and their sum say, for every
cell, which part it shows. In: RGB in [0, 1]. Out: logits of background and the four parts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hpnet import weights
from hpnet.model import ModelConfig, ResNetTrunk, Trunk, TrunkNetwork, layer4, trunk_channels
from hpnet.parts import PARTS

CLASSES: Final = 1 + len(PARTS)  # background first
_NARROWER: Final = 4  # the attention branches have a quarter of the trunk's channels
_QUERY_NARROWER: Final = 8  # and a cell's query and key an eighth of those
_DROPOUT: Final = 0.1


@dataclass(frozen=True)
class TeacherConfig:
    """All that decides the teacher's shape; stands in the header of its weights.

    Attributes:
        trunk: which ResNet; eight pixels become one cell.
        layer4: with the ResNet's last stage, as in the paper; without it the teacher is small (3.5 M parameters on a
            ResNet-18 in place of 12.4 M).
        size: (height, width) in pixels that photos are resized to.
        mean, std: RGB normalisation, as in `ModelConfig`.
    """

    trunk: Trunk = "resnet101"
    layer4: bool = True
    size: tuple[int, int] = (384, 192)
    mean: tuple[float, float, float] = ModelConfig.mean
    std: tuple[float, float, float] = ModelConfig.std

    def __post_init__(self) -> None:
        if min(self.size) < 32:
            raise ValueError(f"size must be at least 32 x 32, not {self.size[0]} x {self.size[1]}")


class TeacherOutput(NamedTuple):
    """Logits (b, 5, h, w) of background and parts, a cell for every 8 pixels."""

    fused: Float[Tensor, "b c h w"]
    position: Float[Tensor, "b c h w"]
    channel: Float[Tensor, "b c h w"]


class Teacher(TrunkNetwork):
    """DANet on a ResNet."""

    def __init__(self, config: TeacherConfig = TeacherConfig()) -> None:
        super().__init__(ResNetTrunk(config.trunk, stride=8), config.mean, config.std)
        self.config = config
        _dilate(self.trunk.layer3, 2)
        self.layer4 = layer4(config.trunk) if config.layer4 else nn.Sequential()
        if config.layer4:
            _dilate(self.layer4, 4)
            self.conv5_names = ("layer4",)
        d = trunk_channels(config.trunk, with_layer4=config.layer4)
        narrow = d // _NARROWER
        self.position = nn.Sequential(_convolution(d, narrow), PositionAttention(narrow), _convolution(narrow, narrow))
        self.channel = nn.Sequential(_convolution(d, narrow), ChannelAttention(), _convolution(narrow, narrow))
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(_DROPOUT), nn.Conv2d(narrow, CLASSES, 1)) for _ in TeacherOutput._fields
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> TeacherOutput:
        """What every cell shows, said three times; the fused logits are the answer."""
        features = self.layer4(self.shared_features(images))
        by_position, by_channel = self.position(features), self.channel(features)
        ways = (by_position + by_channel, by_position, by_channel)
        return TeacherOutput(*(classify(each) for classify, each in zip(self.classifiers, ways, strict=True)))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters that start from ImageNet, and newly added ones."""
        return self.parameters_apart([self.position, self.channel, self.classifiers])


class PositionAttention(nn.Module):
    """Every cell receives the features of all cells, weighed by how alike they are (Fu et al., Section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // _QUERY_NARROWER)
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(1))  # alpha, learnt from 0

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The features, and a learnt share of what alike cells say."""
        query, key, value = (layer(features).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        received: Tensor = value @ attention.transpose(1, 2)
        return self.gain * received.view_as(features) + features


class ChannelAttention(nn.Module):
    """Every channel receives the other channels, weighed by how little they have in common (Section 3.3).

    As in the authors' code the affinity is subtracted from its row's maximum before the softmax, which the paper's
    Eq. 3 does not say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))  # beta, learnt from 0

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The features, and a learnt share of what the other channels say."""
        flat = features.flatten(2)
        affinity = flat @ flat.transpose(1, 2)
        attention = torch.softmax(affinity.amax(-1, keepdim=True) - affinity, dim=-1)
        return self.gain * (attention @ flat).view_as(features) + features


def teacher_loss(output: TeacherOutput, part_map: UInt8[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """Cross-entropy over background and parts, summed over the three outputs (Fu et al., Section 3.4).

    Args:
        output: the logits; brought to the labels' resolution bilinearly.
        part_map: 0 background, 1..4 the parts.
    """
    target = part_map.long()
    losses = [F.cross_entropy(_at_size(logits.float(), target.shape[1:]), target) for logits in output]
    return torch.stack(losses).sum()


def probabilities(output: TeacherOutput, size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """How likely every pixel shows the background or a part, at a size (height, width) in pixels."""
    return _at_size(output.fused.float(), size).softmax(1)


def save_teacher(model: Teacher, path: Path, training: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a teacher's weights with its configuration and what it learnt from."""
    header = {"format": weights.TEACHER_FORMAT, "config": asdict(model.config), "training": training}
    weights.write_tensors(path, model.state_dict(), header, dtype)


def load_teacher(path: str | Path) -> tuple[Teacher, weights.Header[TeacherConfig]]:
    """Read what `save_teacher` wrote, in eval mode.

    Args:
        path: the file, or the name of bundled weights.

    Raises:
        WeightsError: missing, damaged, or no teacher.
    """
    model, header = weights.load_network(path, weights.TEACHER_FORMAT, TeacherConfig, Teacher)
    return model.eval(), header


def _at_size(logits: Float[Tensor, "b c h w"], size: tuple[int, ...]) -> Float[Tensor, "b c H W"]:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _convolution(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(entering, leaving, 3, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU())


def _dilate(stage: nn.Sequential, dilation: int) -> None:
    """Give a stage of stride 1 the reach it had behind a larger stride; its first block has the stage before's."""
    for number, block in enumerate(stage):
        reach = dilation if number else dilation // 2
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (reach, reach)
