"""Speed where the program does its work, each figure beside what it is compared with in the same run: `make bench`.

In: nothing. Out: a table on standard output. Compare ratios, not seconds: both sides of a ratio ran on the same machine
within the same minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from rich.console import Console
from rich.table import Table

from hpnet.data.photos import find_photos, read_stack
from hpnet.data.synthetic import SyntheticConfig, write_market1501
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.evaluation.metrics import score
from hpnet.model import HPNet, ModelConfig
from hpnet.parts import PartFeatures
from hpnet.training.label import label
from hpnet.training.recipe import Recipe
from hpnet.training.teacher import load_teacher
from hpnet.training.train import fit, setup

QUERIES, GALLERY, DIMENSIONS = 3368, 15913, 2048  # Market-1501 with ResNet-50
COMPACT = ModelConfig(trunk="resnet18", branch="compact", parsing_channels=64, size=(128, 64), stride=8)
Row = tuple[str, str, str, str, str]


def seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of several runs after one that does not count."""
    action()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


def people(count: int, generator: torch.Generator) -> PartFeatures:
    features = F.normalize(torch.randn(count, 4, DIMENSIONS, generator=generator), dim=-1)
    return PartFeatures(features, torch.rand(count, 4, generator=generator) < 0.8)


def evaluation() -> list[Row]:
    """A whole Market-1501 evaluation against the bare matrix products that it contains."""
    chance = torch.Generator().manual_seed(0)
    query, gallery = people(QUERIES, chance), people(GALLERY, chance)
    ours = seconds(lambda: part_distance(query, gallery), repeats=2)
    operands = [(query.features[:, part].contiguous(), gallery.features[:, part].contiguous()) for part in range(4)]
    bare = seconds(lambda: [mine @ theirs.T for mine, theirs in operands], repeats=2)
    distance = part_distance(query, gallery)
    identity = torch.randint(750, (QUERIES,), generator=chance), torch.randint(900, (GALLERY,), generator=chance)
    camera = torch.randint(6, (QUERIES,), generator=chance), torch.randint(6, (GALLERY,), generator=chance)
    match = identity[0][:, None] == identity[1]
    ignore = match & (camera[0][:, None] == camera[1])
    metrics = seconds(lambda: score(distance, match, ignore), repeats=2)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = f"{QUERIES} x {GALLERY}, 4 x {DIMENSIONS}"
    return [
        (
            f"distance, {size}",
            f"{ours:.2f} s",
            "bare matrix products",
            f"{bare:.2f} s",
            f"{ours / bare:.2f} (aim: 1.3)",
        ),
        (
            "metrics of the same",
            f"{metrics:.2f} s",
            "the distance",
            f"{ours:.2f} s",
            f"{metrics / ours:.3f} (aim: 0.1)",
        ),
        ("peak memory of both", f"{memory:.1f} GiB", "", "", "(aim: under 6 GB)"),
    ]


def bare_forward(model: HPNet, images: torch.Tensor, layout: torch.memory_format) -> list[torch.Tensor]:
    """The same layers without anything around them."""
    normalised = ((images - model.mean) / model.std).to(memory_format=layout)
    shared = model.trunk(normalised)
    maps = [branch(shared) for branch in model.branches]
    logits = [head(features) for head, features in zip(model.parsing_heads, maps, strict=True)]
    pooled = [(features * (each > 0)).amax((2, 3)) for features, each in zip(maps, logits, strict=True)]
    return [neck(each) for neck, each in zip(model.necks, pooled, strict=True)]


def forward() -> list[Row]:
    """The paper's model against its bare layers in either memory layout."""
    images = torch.rand(16, 3, 384, 128, generator=torch.Generator().manual_seed(0))
    model, other = HPNet(ModelConfig()).eval(), HPNet(ModelConfig()).eval().to(memory_format=torch.contiguous_format)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: model(images),
        "channels_last": lambda: bare_forward(model, images, torch.channels_last),
        "contiguous": lambda: bare_forward(other, images, torch.contiguous_format),
    }
    took = dict.fromkeys(ways, float("inf"))
    with torch.inference_mode():
        for _ in range(4):  # by turns, so that a busy moment of the machine hits all of them
            took = {name: min(took[name], seconds(way, repeats=1)) for name, way in ways.items()}
    best = min(("channels_last", "contiguous"), key=lambda name: took[name])
    ratio = f"{took['ours'] / took[best]:.2f} (aim: 1)"
    bare = f"{took[best]:.2f} s"
    return [("ResNet-50 HPNet forward, batch 16", f"{took['ours']:.2f} s", f"bare layers, {best}", bare, ratio)]


def training_and_embedding(folder: Path) -> list[Row]:
    """How long training steps wait for their batches, and photos from disk against a bare forward loop."""
    write_market1501(folder / "dolls", SyntheticConfig(identities=64, test_identities=40, cameras=2, shots=2))
    recipe = Recipe(
        reid=folder / "dolls", part_maps=folder / "dolls" / "part_maps", out=folder / "run", model=COMPACT, epochs=3
    )
    fit(setup(recipe, quiet=True), quiet=True)
    rows = [json.loads(line) for line in (recipe.out / "log.jsonl").read_text().splitlines()][1:]
    step, wait = (sum(row[name] for row in rows) / len(rows) for name in ("seconds", "wait"))
    embedder = Embedder(recipe.out / "weights.safetensors", batch_size=32)
    photos = find_photos(folder / "dolls" / "bounding_box_test")
    ours = seconds(lambda: embedder(photos), repeats=2)
    stack = read_stack(photos, COMPACT.size).float() / 255
    with torch.inference_mode():
        bare = seconds(lambda: [embedder.model(batch) for batch in torch.split(stack, 32)], repeats=2)
    rate = len(photos) / ours
    return [
        (
            "wait for a batch of 64",
            f"{1000 * wait:.1f} ms",
            "the training step",
            f"{1000 * step:.0f} ms",
            f"{wait / step:.3f} (aim: 0.05)",
        ),
        (
            f"embedding {len(photos)} files",
            f"{rate:.0f} a second",
            "bare forward loop",
            f"{len(photos) / bare:.0f} a second",
            f"{ours / bare:.2f}",
        ),
    ]


def labelling(folder: Path) -> list[Row]:
    """Part maps from files to files against a bare loop of the teacher's forward passes."""
    photos = find_photos(folder / "dolls" / "bounding_box_test")
    model, _ = load_teacher("teacher")

    def ours() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            label("teacher", photos[0].parent, folder / "labels", overwrite=True, json=True)

    stack = read_stack(photos, model.config.size).float() / 255
    with torch.inference_mode():
        bare = seconds(lambda: [model(batch) for batch in torch.split(stack, 32)], repeats=2)
    took = seconds(ours, repeats=2)
    rates = (f"{len(photos) / each:.0f} a second" for each in (took, bare))
    return [
        (f"labelling {len(photos)} files", next(rates), "bare forward loop", next(rates), f"{took / bare:.2f} (aim: 2)")
    ]


def main() -> None:
    """Measure and print."""
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in ("what", "took", "beside", "took", "ratio"):
        table.add_column(name)
    for row in evaluation() + forward():
        table.add_row(*row)
    with tempfile.TemporaryDirectory() as folder:
        for row in training_and_embedding(Path(folder)) + labelling(Path(folder)):
            table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
