"""Recipe: everything that decides a training run, as one frozen value read from YAML and the command line.

In: a YAML file, perhaps based on another, and `--key value` overrides. Out: a recipe, or one clear line that names
the key that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from glob import escape
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hpnet.data.transforms import Augmentation
from hpnet.model import ModelConfig

_BASED_ON: Final = "based_on"
_FREE: Final = ("device", "out", "checkpoint_minutes")
DENSEPOSE_TRAIN: Final = "annotations/densepose_coco_2014_train.json"


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """What decides any training run. Defaults are the paper's (Section 4.1) wherever it states a value.

    Attributes:
        out: run folder; must be empty or absent unless a run is resumed.
        initial: ImageNet weights of the trunk (.pth, .safetensors, or the folded .npz); None starts from nothing.
        epochs: passes over the data.
        learning_rate: of layers that start from ImageNet.
        new_layer_rate: of newly added layers.
        schedule: `step` multiplies the rates by 0.1 after each of rate_drops; `cosine` lets them fall to zero.
        rate_drops: epochs after which the rate drops.
        warmup_epochs: epochs over which the rates rise from a hundredth.
        optimiser: `sgd` as in the paper, or `adam` (AdamW), which learns faster in short runs from nothing.
        momentum: of SGD.
        weight_decay: of either.
        seed: decides initial values and every batch.
        device: cpu, cuda; None takes a GPU if there is one.
        average_decay: 0 = the weights of the last step; otherwise those of an exponential moving average over the
            steps, so much of which stays at each step (0.999, for example).
        precision: bfloat16 = autocast, for GPUs and processors with bfloat16 arithmetic; parameters stay float32.
        checkpoint_minutes: a checkpoint is written at least this often, and at the end.
    """

    out: Path
    initial: Path | None = None
    epochs: int = 300
    learning_rate: float = 0.01
    new_layer_rate: float = 0.02
    schedule: Literal["step", "cosine"] = "step"
    rate_drops: tuple[int, ...] = (240,)
    warmup_epochs: float = 0.0
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    average_decay: float = 0.0
    device: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        self._at_least(1, "epochs")
        self._at_least(0, "warmup_epochs")
        self._share("average_decay")

    def as_text(self) -> str:
        """The recipe in YAML, every value resolved; reading it gives the same recipe."""
        text: str = yaml.safe_dump(_plain(asdict(self)), sort_keys=False)
        return text

    def conflicts(self, other: RunRecipe) -> list[str]:
        """One line for each value in which two recipes differ, nested names with dots.

        Where and how a run is kept does not count: device, out and checkpoint_minutes may change on the way.
        """
        mine, theirs = (dict(_flat(_plain(asdict(each)))) for each in (self, other))
        differing = [name for name in mine if mine[name] != theirs[name] and name not in _FREE]
        return [f"{name}: {theirs[name]!r} -> {mine[name]!r}" for name in differing]

    def _share(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                bound = f"{least} or more" if least == 0 else f"at least {least}"
                raise RecipeError(f"{name} must be {bound}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Recipe(RunRecipe):
    """How HPNet or the baseline is trained. Defaults are the paper's wherever it states a value.

    Attributes:
        reid: folder of a known ReID data set (its training split is used), or a CSV of photos.
        part_maps: folder of part maps (PNG) that mirrors the data set's; not needed by the baseline. A photo without
            one trains the identity and triplet losses alone.
        human_set: which human-labelled parsing set makes the second stream.
        human_root: its folder.
        human_annotations: DensePose-COCO's annotation file, below human_root.
        human_photos: COCO's folder of photos, below human_root.
        initial: as for any run; also what an earlier run learnt with the same layers: its weights, or its
            checkpoint.pt, whose classifiers go on too (for the same training identities).
        model: the network; its number of identities is taken from the data.
        augmentation: how photos of both streams are varied.
        epochs: passes over the identities.
        identities_per_batch: P.
        images_per_identity: K.
        human_batch: images of the human-labelled stream in a step.
        running_statistics: whose photos the batch norms' running statistics describe: `both` streams' in turn, the
            human-labelled one last (the authors' code), or those of `reid` alone, which are what is described later.
        validation_identities: so many training identities, the last ones, are kept out for the validation protocol.
        weight_identity: lambda_ide of Eq. 10.
        weight_triplet: lambda_tri.
        weight_parsing: lambda_seg.
        weight_human: lambda_seg^coco.
        identity_average: `batch` as in Eq. 2, `visible` as in the authors' code.
        label_smoothing: share of the identity loss's target that is spread over all classes; 0 in the paper.
        parsing_average: `image` as in Eq. 9, `batch` as in the authors' code.
        margin: M of Eq. 3.
        triplet_on: what the triplet loss compares: `features` before the neck (Luo et al. 2019, the paper), or the
            `embedding` after it.
        alternate: triplet loss on even steps and identity loss on odd ones (the authors' code) instead of their sum.
        parsing_only_epochs: epochs at the start that learn parsing alone (the authors' code: 10).
    """

    reid: Path
    part_maps: Path | None = None
    human_set: Literal["off", "pascal", "densepose"] = "off"
    human_root: Path | None = None
    human_annotations: str = DENSEPOSE_TRAIN
    human_photos: str = "train2014"
    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    identities_per_batch: int = 16
    images_per_identity: int = 4
    human_batch: int = 32
    running_statistics: Literal["both", "reid"] = "both"
    validation_identities: int = 0
    weight_identity: float = 1.0
    weight_triplet: float = 0.1
    weight_parsing: float = 1.0
    weight_human: float = 1.0
    identity_average: Literal["batch", "visible"] = "batch"
    label_smoothing: float = 0.0
    parsing_average: Literal["image", "batch"] = "image"
    margin: float = 0.3
    triplet_on: Literal["features", "embedding"] = "features"
    alternate: bool = False
    parsing_only_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "identities_per_batch", "images_per_identity", "human_batch")
        self._at_least(0, "validation_identities", "parsing_only_epochs")
        self._share("label_smoothing")
        if self.model.baseline and self.parsing_only_epochs:
            raise RecipeError("parsing_only_epochs must be 0 for the baseline, which does not parse")
        if not self.model.baseline and self.part_maps is None:
            raise RecipeError("part_maps is missing: give the folder of part maps (or model.baseline: true)")
        if self.human_set != "off" and self.human_root is None:
            raise RecipeError(f"human_root is missing: give the folder of {self.human_set} (or human_set: off)")

    @property
    def has_human_stream(self) -> bool:
        """Whether steps have a second, human-labelled batch."""
        return self.human_set != "off" and self.weight_human > 0 and not self.model.baseline


class RecipeError(ValueError):
    """A recipe that cannot be used; the text names the file or key and what to do."""


Kind = TypeVar("Kind", bound=RunRecipe)


def read_recipe(path: Path, overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """Read a recipe and put `--key value` overrides on top; nested keys are written `--model.trunk resnet18`.

    A recipe may say `based_on: other.yaml` (relative to itself) and name only what differs. Paths in a recipe are
    relative to the working folder.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value of the wrong kind, or two values that do not fit.
    """
    # jsonargparse takes them for patterns
    chain: list[str | PathLike[Any]] = [escape(str(each)) for each in _chain(path)]
    parser = ArgumentParser(exit_on_error=False, default_config_files=chain)
    parser.add_argument(f"--{_BASED_ON}")
    parser.add_class_arguments(kind)
    try:
        chosen = parser.parse_args(list(overrides))
        chosen.pop(_BASED_ON)
        return kind(**parser.instantiate(chosen))
    except (ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from error


def _chain(path: Path) -> list[Path]:
    """The recipe and those it is based on, the most basic first."""
    chain: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        if following.resolve() in (each.resolve() for each in chain):
            raise RecipeError(f"{following}: is {_BASED_ON} itself")
        chain.insert(0, following)
        content = _content(following)
        following = following.parent / str(content[_BASED_ON]) if _BASED_ON in content else None
    return chain


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines")
    return content


def _plain(value: Any) -> Any:
    """The value as YAML's own types."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
