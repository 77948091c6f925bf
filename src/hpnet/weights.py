"""The model as a file: safetensors whose header holds all that is needed to use it, and the ways in from elsewhere.

In: a path (or the name of bundled weights). Out: an `HPNet` in eval mode. Nothing in a weights file is ever executed:
the project's own files are safetensors, and foreign PyTorch files are opened with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from hpnet.files import written_whole
from hpnet.model import HPNet, ModelConfig, Trunk, TrunkNetwork
from hpnet.parts import PARTS

FORMAT: Final = "hpnet-weights/1"
TEACHER_FORMAT: Final = "hpnet-teacher/1"
_KINDS: Final = {FORMAT: "hpnet weights", TEACHER_FORMAT: "weights of a teacher"}
# name -> sha256 of pretrained/<name>.safetensors
BUNDLED: Final = {
    "compact": "f95d3ad9921e2ce38bba1a0f85223463f25c9e7189f59f0ee61d5a6ffecfe570",
    "teacher": "335494ae49cc7417b37dc9220708736bb1802b1a4b18dc0afebea2c9a221759d",
}

# The authors' state_dict names -> ours, tried in order on the start of a name.
_AUTHORS_NAMES: Final = (
    (r"backbone\.layer4_list\.(\d)\.", r"branches.\1."),
    (r"backbone\.layer4\.", r"branches.0."),
    (r"backbone\.", r"trunk."),
    (r"bn_list\.(\d)\.", r"necks.\1."),
    (r"bn\.", r"necks.0."),
    (r"cls_list\.(\d)\.", r"classifiers.\1."),
    (r"cls\.", r"classifiers.0."),
    (r"ps_head_list\.(\d)\.mid_conv\.", r"parsing_heads.\1.conv1."),
    (r"ps_head_list\.(\d)\.bn\.", r"parsing_heads.\1.bn1."),
    (r"ps_head_list\.(\d)\.conv\.", r"parsing_heads.\1.conv2."),
)
# (blocks in layer3, whether they are bottlenecks) -> the ResNet.
_TRUNKS: Final[dict[tuple[int, bool], Trunk]] = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}


# What readers of foreign files raise when the bytes are not what they expect.
_DAMAGED: Final = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)

_TEACHING: Final = ("classifiers.", "whole.")  # layers that only teach the others
_IN_CHECKPOINT: Final = {"model", "optimiser", "step"}

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


class WeightsError(ValueError):
    """Weights that cannot be used; the text names the file and what to do."""


@dataclass(frozen=True)
class Header(Generic[Config]):
    """What a weights file says of itself.

    Attributes:
        config: the network's shape and normalisation.
        parts: names of the parts in their order.
        training: what the weights were learnt from, by whatever names `save` was given.
        version: of hpnet, when the file was written.
    """

    config: Config
    parts: tuple[str, ...]
    training: dict[str, Any]
    version: str


def locate(weights: str | Path) -> Path:
    """The file behind a path or the name of bundled weights.

    Raises:
        WeightsError: neither a file nor a bundled name.
    """
    bundled = Path(__file__).parent / "pretrained" / f"{weights}.safetensors"
    if str(weights) in BUNDLED and bundled.is_file():
        return bundled
    path = Path(weights)
    if path.is_file():
        return path
    if str(weights) == "compact":
        raise WeightsError("no compact weights are bundled with this version: give the path of a weights file")
    raise WeightsError(f"{weights}: no such weights file")


def save(
    model: HPNet,
    path: Path | str,
    *,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    classifiers: bool = False,
) -> None:
    """Write a model, by way of a temporary file beside it.

    Args:
        model: what to write.
        path: a `.safetensors` file; its folder is made.
        training: what the weights were learnt from (data set, hash, recipe, seed ...), anything JSON can hold.
        dtype: of the numbers on disk; float16 halves the file.
        classifiers: keep the training identities' classifiers and the global branch, which search does not need.
    """
    config = model.config if classifiers else replace(model.config, identities=0, global_branch=False)
    state = {name: each for name, each in model.state_dict().items() if classifiers or not name.startswith(_TEACHING)}
    write_tensors(path, state, {"format": FORMAT, "config": asdict(config), "training": dict(training or {})}, dtype)


def write_tensors(
    path: Path | str, state: Mapping[str, Tensor], header: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write tensors and a header with the parts and the version, by way of a temporary file beside it.

    Args:
        path: a `.safetensors` file; its folder is made.
        state: tensors by name.
        header: its `format` is written as it is, everything else as JSON.
        dtype: of the floats on disk.
    """
    on_disk = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    texts = {name: value if name == "format" else json.dumps(value) for name, value in header.items()}
    texts |= {"parts": json.dumps([part.name for part in PARTS]), "version": metadata.version("hpnet")}
    with written_whole(Path(path)) as beside:
        # Not save_file: it makes files that only their owner may read, whatever the umask says.
        beside.write_bytes(serialise(on_disk, metadata=texts))


def with_training(weights: str | Path, out: Path, training: Mapping[str, Any]) -> None:
    """Write a weights file anew with another record of its training; tensors and fingerprint stay what they are.

    Args:
        weights: path of a file that `save` wrote, or the name of bundled weights.
        out: a `.safetensors` file, which may be the same.
        training: as for `save`.

    Raises:
        WeightsError: as `read_header`.
    """
    path = locate(weights)
    with _opened(path) as file:
        texts = dict(file.metadata() or {})
        _header(texts, path, FORMAT, ModelConfig)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (as in load_network)
    texts["training"] = json.dumps(dict(training))
    with written_whole(out) as beside:
        beside.write_bytes(serialise(state, metadata=texts))


def read_header(weights: str | Path) -> Header[ModelConfig]:
    """What stands in the header, without reading the weights.

    Raises:
        WeightsError: missing, damaged, a pickle, or another program's file.
    """
    path = locate(weights)
    with _opened(path) as file:
        return _header(file.metadata() or {}, path, FORMAT, ModelConfig)


def load(weights: str | Path, device: torch.device | str = "cpu") -> HPNet:
    """Load a model, in eval mode and float32.

    Args:
        weights: path of a file that `save` wrote, or the name of bundled weights.
        device: where to put it.

    Raises:
        WeightsError: as `read_header`; or tensors are missing, surplus or of another shape.
    """
    return load_network(weights, FORMAT, ModelConfig, HPNet)[0].eval().to(device)


def load_network(
    weights: str | Path, written_as: str, config: Callable[..., Config], build: Callable[[Config], Network]
) -> tuple[Network, Header[Config]]:
    """Build the network that a file's header describes and fill it from the file.

    Args:
        weights: path of the file, or the name of bundled weights.
        written_as: the format that its header must name.
        config: makes the network's configuration from the header's fields.
        build: makes the network from its configuration.

    Raises:
        WeightsError: as `load`.
    """
    path = locate(weights)
    with _opened(path) as file:
        header = _header(file.metadata() or {}, path, written_as, config)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a safetensors handle, no dict)
    try:
        model = build(header.config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its header describes no network ({_first_line(error)})") from error
    _fill(model, state, path)
    return model, header


def is_own(path: Path) -> bool:
    """Whether this project wrote a file to go on from: weights of HPNet, whatever their version, or a checkpoint."""
    if path.suffix == ".pt":
        return read_torch_file(path).keys() >= _IN_CHECKPOINT
    if path.suffix != ".safetensors":
        return False
    with _opened(locate(path)) as file:
        return str((file.metadata() or {}).get("format", "")).startswith("hpnet-weights/")


def load_learnt(model: HPNet, path: Path) -> None:
    """Start a model from what an earlier run learnt, to go on learning.

    Classifiers and global branch go on where the file holds them in the model's shape, and are fresh elsewhere: a
    run's weights leave them out, its checkpoint has them. Nothing says whose classifiers they are, so a checkpoint is
    for going on with the same training identities.

    Args:
        model: changed in place.
        path: a run's `weights.safetensors` or `checkpoint.pt` of the same layers; size and threshold may differ.

    Raises:
        WeightsError: as `load`, or the layers differ.
    """
    learnt = read_torch_file(path)["model"] if path.suffix == ".pt" else load(path).state_dict()
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    fits = {name: tensor for name, tensor in learnt.items() if own.get(name) == tensor.shape}
    differ = {name for name in own.keys() ^ fits.keys() | learnt.keys() ^ fits.keys() if not name.startswith(_TEACHING)}
    if differ:
        raise WeightsError(f"{path}: its layers are not the recipe's (model.trunk, model.branch): {min(differ)}")
    model.load_state_dict(fits, strict=False)


def from_authors(path: str | Path) -> HPNet:
    """Read the authors' `ckpt.pth` (HPNet, share Conv5, or Baseline), in eval mode, with its classifiers.

    Raises:
        WeightsError: not such a checkpoint. Only tensors are read; other objects in the pickle are refused.
    """
    path = Path(path)
    checkpoint = read_torch_file(path)
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else {}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        ours = _renamed(str(name).removeprefix("module."))
        if ours is not None and isinstance(tensor, Tensor):
            renamed[ours] = tensor
    if "trunk.conv1.weight" not in renamed or "necks.0.weight" not in renamed:
        raise WeightsError(f"{path}: not a checkpoint of the authors' code (no `backbone` and `bn` under `model`)")
    model = HPNet(_authors_config(renamed))
    _fill(model, renamed, path)
    return model.eval()


def load_imagenet(model: TrunkNetwork, path: str | Path) -> None:
    """Start a model from an ImageNet ResNet in torchvision's names; layer4 is copied to every Conv5 (Section 3).

    Args:
        model: changed in place; heads, necks and classifiers keep their fresh values, compact branches too.
        path: `.pth` (opened with weights_only=True) or `.safetensors`.

    Raises:
        WeightsError: another architecture, or not a ResNet.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(locate(path)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        state = read_torch_file(path)
    own = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    filled = {name: tensor for theirs, tensor in tensors.items() for name in _torchvision_targets(theirs, model)}
    wanted = {name for name in own if name.startswith(("trunk.", *(f"{conv5}." for conv5 in model.conv5_names)))}
    missing = sorted(wanted - set(filled) - {name for name in wanted if name.endswith("num_batches_tracked")})
    differing = [name for name, tensor in filled.items() if name not in own or own[name].shape != tensor.shape]
    if missing or differing:
        example = (missing + differing)[0]
        raise WeightsError(f"{path}: not the ImageNet weights of a {model.trunk.name} ({example} does not fit)")
    model.load_state_dict(filled, strict=False)


def load_folded_trunk(model: TrunkNetwork, path: str | Path, photos: Float[Tensor, "n 3 H W"]) -> None:
    """Start the trunk from convolutions into which batch norm was folded, and unfold it again.

    A folded convolution has a weight and a bias. Its batch norm is rebuilt from the mean m and variance v of the
    convolution's output on some photos: running_mean = m, running_var = v, gamma = sqrt(v + eps), beta = bias + m; so
    train and eval mode agree at the start and fine-tuning can go on.

    Args:
        model: changed in place.
        path: `.npz` with arrays `<convolution>.weight` and `.bias`, torchvision's names, conv1 .. layer3.
        photos: a few hundred, RGB in [0, 1], like those to be trained on.

    Raises:
        WeightsError: not such a file, or another architecture.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            folded = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, *_DAMAGED) as error:
        raise WeightsError(f"{path}: not an .npz of arrays ({_first_line(error)})") from error
    pairs = list(_convolutions_with_norms(model.trunk))
    names = {f"{name}.{kind}" for name, _, _ in pairs for kind in ("weight", "bias")}
    if set(folded) != names:
        example = min(set(folded) ^ names)
        raise WeightsError(f"{path}: not the folded trunk of a {model.trunk.name} ({example} is not in both)")
    for name, convolution, norm in pairs:
        for kind, own in (("weight", convolution.weight), ("bias", norm.bias)):
            if folded[f"{name}.{kind}"].shape != own.shape:
                raise WeightsError(f"{path}: {name}.{kind} does not fit a {model.trunk.name}")
    for name, convolution, norm in pairs:
        norm.reset_running_stats()
        with torch.no_grad():
            convolution.weight.copy_(folded[f"{name}.weight"])
            norm.weight.copy_(torch.full_like(norm.weight, (1 + norm.eps) ** 0.5))  # the identity, until measured
            norm.bias.copy_(folded[f"{name}.bias"])
    _unfold(model, pairs, photos)


def read_torch_file(path: Path) -> dict[str, Any]:
    """What a PyTorch file holds under names, on the CPU; nothing in it is executed.

    Raises:
        WeightsError: missing, damaged, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle's age help nobody: it is read or refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise WeightsError(f"{path}: refused: damaged, or holds more than tensors ({_first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise WeightsError(f"{path}: holds no dictionary of named tensors")
    return content


def _unfold(model: TrunkNetwork, pairs: list[tuple[str, nn.Conv2d, nn.BatchNorm2d]], photos: Tensor) -> None:
    """Measure every convolution's output and rebuild its batch norm around the measurement."""
    outputs: dict[str, list[Tensor]] = {name: [] for name, _, _ in pairs}

    def measure(name: str, output: Tensor) -> None:
        # Sums over the photos, so that the last batch, which may be smaller, counts by its size.
        outputs[name].append(torch.stack([output.mean((2, 3)).sum(0), output.square().mean((2, 3)).sum(0)]))

    hooks = [
        convolution.register_forward_hook(lambda _module, _entering, output, name=name: measure(name, output))
        for name, convolution, _ in pairs
    ]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in torch.split(photos, 64):
            model.trunk((batch - model.mean) / model.std)
        for hook in hooks:
            hook.remove()
        for name, _, norm in pairs:
            mean, square = torch.stack(outputs[name]).sum(0) / len(photos)
            variance = (square - mean**2).clamp(min=0)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean)
    model.train(was_training)


def _convolutions_with_norms(trunk: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    modules = dict(trunk.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            norm = modules[re.sub(r"conv(\d)$", r"bn\1", name) if "conv" in name else re.sub(r"0$", "1", name)]
            assert isinstance(norm, nn.BatchNorm2d)
            yield name, module, norm


def _torchvision_targets(name: str, model: TrunkNetwork) -> list[str]:
    if name.startswith("layer4."):
        return [name.replace("layer4", conv5, 1) for conv5 in model.conv5_names]
    return [] if name.startswith("fc.") else [f"trunk.{name}"]


def _renamed(name: str) -> str | None:
    for pattern, target in _AUTHORS_NAMES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", target, name)
    return None


def _authors_config(state: Mapping[str, Tensor]) -> ModelConfig:
    branches = {name.split(".")[1] for name in state if name.startswith("branches.")}
    baseline = not any(name.startswith("parsing_heads.") for name in state)
    layer3 = {name.split(".")[2] for name in state if name.startswith("trunk.layer3.")}
    trunk = _TRUNKS.get((len(layer3), "trunk.layer1.0.conv3.weight" in state), "resnet50")
    classes = state["classifiers.0.weight"].shape[0] if "classifiers.0.weight" in state else 0
    head = state.get("parsing_heads.0.conv1.weight")
    return ModelConfig(
        trunk=trunk,
        share_conv5=len(branches) == 1 and not baseline,
        baseline=baseline,
        identities=classes,
        parsing_channels=ModelConfig.parsing_channels if head is None else head.shape[0],
    )


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in wanted]
    differing = [name for name in state if name in wanted and wanted[name].shape != state[name].shape]
    if missing or surplus or differing:
        what = [("lacks", missing), ("has the unknown", surplus), ("has another shape of", differing)]
        described = "; ".join(f"{verb} {len(names)} tensors, {names[0]} first" for verb, names in what if names)
        raise WeightsError(f"{path}: does not fit its own description: it {described}")
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}, strict=False)


def _header(texts: Mapping[str, str], path: Path, written_as: str, config: Callable[..., Config]) -> Header[Config]:
    if texts.get("format") != written_as:
        found = texts.get("format", "none")
        raise WeightsError(f"{path}: not {_KINDS[written_as]} (format {found!r}, this version reads {written_as!r})")
    try:
        fields = json.loads(texts["config"])
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        parts = tuple(map(str, json.loads(texts["parts"])))
        header = Header(config(**fields), parts, dict(json.loads(texts["training"])), texts["version"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its header is damaged ({_first_line(error)})") from error
    if parts != tuple(part.name for part in PARTS):
        raise WeightsError(f"{path}: made for the parts {', '.join(parts)}, not for {', '.join(p.name for p in PARTS)}")
    return header


class _opened:  # noqa: N801  (reads as a verb in a with statement)
    """An open safetensors file whose errors are WeightsErrors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            open_file: Any = safe_open  # its stub has no types
            self.file = open_file(self.path, framework="pt").__enter__()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path}: not a safetensors file{self._hint(error)}") from error
        return self.file

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.file.__exit__(None, None, None)
        if isinstance(error, SafetensorError):
            raise WeightsError(f"{self.path}: damaged ({_first_line(error)})") from error

    def _hint(self, error: Exception) -> str:
        with self.path.open("rb") as file:
            start = file.read(4)
        if not start:
            return ": it is empty"
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return ": it looks like a PyTorch pickle; the authors' ckpt.pth comes in by weights.from_authors"
        return f" ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
