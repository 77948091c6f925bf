"""HPNet and the paper's global baseline: images in, parts found and described out (Sections 3.1 and 4.1).

A ResNet's conv1 .. layer3 is shared; each part has its own layer4 of stride 1 (Conv5), a parsing head that says where
the part is, a batch-norm neck and a classifier. Parameter names inside trunk and branches are torchvision's, so that
its published weights load unchanged. Normalisation stands in buffers: a model takes plain RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hpnet.parts import PARTS

Trunk = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Branch = Literal["conv5", "compact"]

# Blocks per stage (He et al. 2016, Table 1).
_DEPTHS: Final[dict[str, tuple[int, int, int, int]]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
_COMPACT_BLOCKS: Final = 2
_COMPACT_CHANNELS: Final = 256
_COMPACT_EXPANSION: Final = 2
_NEW_LAYER_STD: Final = 0.001  # of the authors' heads and classifiers


@dataclass(frozen=True)
class ModelConfig:
    """All that decides the network's shape; stands in the header of every weights file.

    Attributes:
        trunk: which ResNet, up to and including layer3.
        branch: `conv5` = the ResNet's own layer4 with stride 1; `compact` = two bottleneck blocks of 256 -> 128 -> 256
            channels, for small models (0.43 M parameters a branch on a ResNet-18 trunk, against 8.4 M of its layer4).
        share_conv5: one branch feeds all parts (Section 4.4, "share Conv5").
        baseline: the paper's Baseline: one branch pooled over the whole picture, no parsing; p = 1, always visible.
        identities: classes c of the classifiers, 0 = none.
        size: (height, width) in pixels that photos are resized to before they come in.
        stride: pixels per cell of the feature maps: 16 as in the paper, or 8 (layer3 of stride 1), which gives small
            photos of 128 x 64 pixels about as many cells as the paper's 384 x 128 have.
        parsing_channels: channels of the parsing heads' hidden layer.
        threshold: T of Section 3.1; a cell belongs to the part if its probability exceeds it.
        visible_cells: so many cells must belong to a part for it to be visible; 1 in the paper.
        global_branch: beside the parts a fifth branch over the whole picture learns people too. It only teaches the
            trunk: it works in train mode alone, and weights files leave it out.
        mean, std: RGB normalisation. The defaults are those the authors trained with (the mean is not ImageNet's usual
            0.485, 0.456, 0.406).
    """

    trunk: Trunk = "resnet50"
    branch: Branch = "conv5"
    share_conv5: bool = False
    baseline: bool = False
    identities: int = 0
    size: tuple[int, int] = (384, 128)
    stride: Literal[8, 16] = 16
    parsing_channels: int = 256
    threshold: float = 0.5
    visible_cells: int = 1
    global_branch: bool = False
    mean: tuple[float, float, float] = (0.486, 0.459, 0.408)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.trunk not in get_args(Trunk) or self.branch not in get_args(Branch):
            raise ValueError(f"unknown trunk or branch: {self.trunk!r}, {self.branch!r}")
        if self.stride not in (8, 16):
            raise ValueError(f"stride must be 8 or 16, not {self.stride}")
        if self.share_conv5 and self.baseline:
            raise ValueError("share_conv5 and baseline exclude each other: the baseline has one branch anyway")
        if self.global_branch and self.baseline:
            raise ValueError("global_branch and baseline exclude each other: the baseline is a global branch")
        if self.visible_cells < 1:
            raise ValueError(f"visible_cells must be at least 1, not {self.visible_cells}")
        if min(self.size) < 32 or self.identities < 0 or not 0 < self.threshold < 1:
            raise ValueError("size must be at least 32 x 32, identities at least 0, threshold between 0 and 1")

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the parsing logits for images of `size`."""
        return -(-self.size[0] // self.stride), -(-self.size[1] // self.stride)

    @property
    def parts(self) -> int:
        """How many parts p the network describes."""
        return 1 if self.baseline else len(PARTS)


def branch_channels(config: ModelConfig) -> int:
    """The dimension d of every part's features."""
    return _COMPACT_CHANNELS if config.branch == "compact" else trunk_channels(config.trunk, with_layer4=True)


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What the network says of b images.

    Attributes:
        parsing_logits: (b, p, h, w) before the sigmoid, a cell for every `stride` pixels; None for the baseline.
        visibility: (b, p) which parts were found.
        features: (b, p, d) before the neck (the triplet loss sees these); zero where a part was not found.
        embedding: (b, p, d) after the neck, not normalised (classifiers and search see these).
        identity_logits: (b, p, c), or None for a model without classifiers.
        whole: what the global branch says, in train mode; None without one.
    """

    parsing_logits: Float[Tensor, "b p h w"] | None
    visibility: Bool[Tensor, "b p"]
    features: Float[Tensor, "b p d"]
    embedding: Float[Tensor, "b p d"]
    identity_logits: Float[Tensor, "b p c"] | None
    whole: WholeOutput | None = None


@dataclass(frozen=True, eq=False)
class WholeOutput:
    """What the global branch says of b images: features before the neck, and identity logits if there are classes."""

    features: Float[Tensor, "b 1 d"]
    identity_logits: Float[Tensor, "b 1 c"] | None


class TrunkNetwork(nn.Module):
    """A network that grows on a ResNet's trunk and normalises its pictures itself.

    Attributes:
        trunk: conv1 .. layer3.
        conv5_names: modules of this network that start from the ResNet's layer4.
    """

    mean: Tensor
    std: Tensor
    conv5_names: tuple[str, ...] = ()

    def __init__(self, trunk: ResNetTrunk, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.trunk = trunk

    def shared_features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """RGB in [0, 1] to what the trunk says of it."""
        features: Tensor = self.trunk(((images - self.mean) / self.std).to(memory_format=torch.channels_last))
        return features

    def parameters_apart(self, new: list[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """All trainable parameters: those outside the given modules, and those inside."""
        chosen = {id(parameter) for module in new for parameter in module.parameters()}
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [each for each in trainable if id(each) not in chosen], [
            each for each in trainable if id(each) in chosen
        ]


class HPNet(TrunkNetwork):
    """The network; see the module's text for its layers and `ModelConfig` for its variants."""

    def __init__(self, config: ModelConfig = ModelConfig()) -> None:
        super().__init__(ResNetTrunk(config.trunk, config.stride), config.mean, config.std)
        self.config = config
        branches = 1 if config.share_conv5 or config.baseline else config.parts
        heads = 0 if config.baseline else config.parts
        classifiers = config.parts if config.identities else 0
        self.branches = nn.ModuleList(_branch(config) for _ in range(branches))
        conv5 = [f"branches.{j}" for j in range(branches)] + ["whole.branch"] * config.global_branch
        self.conv5_names = tuple(conv5) if config.branch == "conv5" else ()
        d = branch_channels(config)
        self.parsing_heads = nn.ModuleList(ParsingHead(d, config.parsing_channels) for _ in range(heads))
        self.necks = nn.ModuleList(nn.BatchNorm1d(d) for _ in range(config.parts))
        self.classifiers = nn.ModuleList(nn.Linear(d, config.identities) for _ in range(classifiers))
        self.whole = WholeBranch(config, d) if config.global_branch else None
        self.dimensions: int = d
        self._initialise()
        # Convolutions on CPU and on tensor cores are faster with channels innermost.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ModelOutput:
        """Find and describe the parts of people.

        Args:
            images: RGB in [0, 1], b of any size (made for `config.size`).
        """
        shared = self.shared_features(images)
        maps = [branch(shared) for branch in self.branches]
        logits = None if self.config.baseline else self._parsing_logits(maps)
        # bool is not differentiable: no gradient reaches the masks from the features, as in the paper.
        masks = None if logits is None else self._masks(logits)
        pooled, visible = [], []
        for part in range(self.config.parts):
            part_features = maps[part % len(maps)]
            if masks is not None:
                part_features = part_features * masks[:, part, None]
                visible.append(masks[:, part].flatten(1).any(1))
            # Features are >= 0 (ReLU), so a masked global maximum is the maximum over the part.
            pooled.append(part_features.amax((2, 3)))
        features = torch.stack(pooled, 1)
        embedding = torch.stack([neck(features[:, part]) for part, neck in enumerate(self.necks)], 1)
        return ModelOutput(
            parsing_logits=logits,
            visibility=torch.stack(visible, 1) if visible else features.new_ones(features.shape[:2]).bool(),
            features=features,
            embedding=embedding,
            identity_logits=self._classify(embedding) if len(self.classifiers) else None,
            whole=self.whole(shared) if self.whole is not None and self.training else None,
        )

    def parse(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b p h w"]:
        """Only find the parts: parsing logits before the sigmoid.

        Raises:
            ValueError: the model is the baseline, which does not parse.
        """
        if self.config.baseline:
            raise ValueError("the baseline has no parsing heads: use an HPNet")
        shared = self.shared_features(images)
        return self._parsing_logits([branch(shared) for branch in self.branches])

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters that start from ImageNet (trunk, Conv5) and newly added ones (Section 4.1: twice the rate)."""
        new: list[nn.Module] = [self.parsing_heads, self.necks, self.classifiers]
        if self.whole is not None:
            new += [self.whole.neck] if self.whole.classifier is None else [self.whole.neck, self.whole.classifier]
        if self.config.branch == "compact":
            new += [self.branches] if self.whole is None else [self.branches, self.whole.branch]
        return self.parameters_apart(new)

    def _masks(self, logits: Float[Tensor, "b p h w"]) -> Bool[Tensor, "b p h w"]:
        """The cells of each part; none of a part with too few to count as visible."""
        masks = logits.sigmoid() > self.config.threshold
        if self.config.visible_cells == 1:
            return masks
        return masks & (masks.sum((2, 3), keepdim=True) >= self.config.visible_cells)

    def _parsing_logits(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([head(maps[part % len(maps)]) for part, head in enumerate(self.parsing_heads)], 1)

    def _classify(self, embedding: Tensor) -> Tensor:
        return torch.stack([classify(embedding[:, part]) for part, classify in enumerate(self.classifiers)], 1)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Only the last layers start near 0, where all masks and classes are undecided. The authors start the heads' 3x3
        # convolutions there too; before a batch norm, so small a weight makes the first steps huge.
        last = [head.conv2 for head in self.parsing_heads if isinstance(head, ParsingHead)]
        whole = [] if self.whole is None or self.whole.classifier is None else [self.whole.classifier]
        for layer in (*last, *self.classifiers, *whole):
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            nn.init.normal_(layer.weight, std=_NEW_LAYER_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for neck in (*self.necks, *([] if self.whole is None else [self.whole.neck])):
            assert isinstance(neck, nn.BatchNorm1d)
            neck.bias.requires_grad_(False)  # stays 0 (Luo et al. 2019)


class WholeBranch(nn.Module):
    """The paper's Baseline on the shared trunk: a branch pooled over the whole picture, with neck and classifier."""

    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.branch = _branch(config)
        self.neck = nn.BatchNorm1d(d)
        self.classifier = nn.Linear(d, config.identities) if config.identities else None

    def forward(self, shared: Float[Tensor, "b e h w"]) -> WholeOutput:
        """The trunk's features in, one description of each picture out."""
        features = self.branch(shared).amax((2, 3))
        logits = None if self.classifier is None else self.classifier(self.neck(features))[:, None]
        return WholeOutput(features[:, None], logits)


class ParsingHead(nn.Module):
    """Where one part is: {3x3 Conv, BN, ReLU, 1x1 Conv} (Section 3.1); the sigmoid is left to loss and mask."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 1 h w"]:
        """Logits of the part at each cell."""
        logits: Tensor = self.conv2(torch.relu(self.bn1(self.conv1(features))))
        return logits


class ResNetTrunk(nn.Module):
    """A ResNet from conv1 to layer3; `stride` pixels of the picture become one cell."""

    def __init__(self, name: Trunk, stride: int = 16) -> None:
        super().__init__()
        self.name = name
        block, depths = _block(name), _DEPTHS[name]
        grow = block.EXPANSION
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * grow, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * grow, 256, depths[2], stride=stride // 8)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Normalised images in, shared features out."""
        entering = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        features: Tensor = self.layer3(self.layer2(self.layer1(entering)))
        return features


class BasicBlock(nn.Module):
    """The two-convolution residual block of ResNet-18 and -34."""

    EXPANSION: Final = 1

    def __init__(self, entering: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.channels = width
        self.conv1 = nn.Conv2d(entering, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(entering, self.channels, stride)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e i j"]:
        """Residual block; never negative."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(inner + (features if self.downsample is None else self.downsample(features)))


class Bottleneck(nn.Module):
    """The three-convolution residual block of ResNet-50 and -101, stride at the 3x3 as in torchvision."""

    EXPANSION: Final = 4

    def __init__(self, entering: int, width: int, stride: int = 1, *, expansion: int = EXPANSION) -> None:
        super().__init__()
        self.channels = width * expansion
        self.conv1 = nn.Conv2d(entering, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.channels)
        self.downsample = _shortcut(entering, self.channels, stride)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e i j"]:
        """Residual block; never negative."""
        inner = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features))))))
        inner = self.bn3(self.conv3(inner))
        return torch.relu(inner + (features if self.downsample is None else self.downsample(features)))


def _block(trunk: Trunk) -> type[BasicBlock] | type[Bottleneck]:
    return BasicBlock if trunk in ("resnet18", "resnet34") else Bottleneck


def _shortcut(entering: int, leaving: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and entering == leaving:
        return None
    return nn.Sequential(nn.Conv2d(entering, leaving, 1, stride=stride, bias=False), nn.BatchNorm2d(leaving))


def _stage(
    block: type[BasicBlock] | type[Bottleneck] | partial[Bottleneck], entering: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    blocks = [block(entering, width, stride)]
    blocks.extend(block(blocks[0].channels, width) for _ in range(depth - 1))
    return nn.Sequential(*blocks)


def layer4(trunk: Trunk) -> nn.Sequential:
    """A ResNet's last stage with stride 1 (Section 4.1)."""
    block = _block(trunk)
    return _stage(block, 256 * block.EXPANSION, 512, _DEPTHS[trunk][3], stride=1)


def trunk_channels(trunk: Trunk, *, with_layer4: bool = False) -> int:
    """Channels of what a ResNet's layer3, or layer4, says."""
    return (512 if with_layer4 else 256) * _block(trunk).EXPANSION


def _branch(config: ModelConfig) -> nn.Sequential:
    """Conv5 of one part, stride 1 (Section 4.1)."""
    block = _block(config.trunk)
    if config.branch == "compact":
        narrow = partial(Bottleneck, expansion=_COMPACT_EXPANSION)
        width = _COMPACT_CHANNELS // _COMPACT_EXPANSION
        return _stage(narrow, 256 * block.EXPANSION, width, _COMPACT_BLOCKS, stride=1)
    return layer4(config.trunk)
