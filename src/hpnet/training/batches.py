"""Training data in memory, and the batch of any step.

In: a recipe. Out: decoded photos and part maps as tensors, from which the batches of step n are a pure function of the
recipe's seed and n. So a run that was stopped goes on exactly, and nothing but the step number has to be remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from hpnet.console import remark, tell_skipped, tracked
from hpnet.data.parsing import MARGIN, parsing_hash, read_densepose, read_pascal, stack
from hpnet.data.photos import Failure, read_part_map, read_stack
from hpnet.data.reid import Person, data_hash, find_data_set, identity_labels, locate, read_split, read_table
from hpnet.data.sampler import IdentitySampler, generator_for
from hpnet.data.transforms import augment, to_cells
from hpnet.parts import PARTS
from hpnet.training.recipe import Recipe, RecipeError

_AHEAD = 1  # batches prepared ahead of the one in training


@dataclass(frozen=True)
class ReIDBatch:
    """The first stream's share of a step: photos in [0, 1], part maps at the logits' resolution, identities 0..c-1.

    `labelled` are the rows that have a part map, None if all have; the other rows of `part_map` say nothing.
    """

    image: Float[Tensor, "b 3 H W"]
    part_map: UInt8[Tensor, "b h w"]
    identity: Int64[Tensor, " b"]
    labelled: Int64[Tensor, " l"] | None = None


@dataclass(frozen=True)
class ParsingBatch:
    """The human-labelled stream's share of a step."""

    image: Float[Tensor, "b 3 H W"]
    part_map: UInt8[Tensor, "b h w"]


@dataclass(frozen=True)
class Labelled:
    """Decoded photos and their part maps, both at the network's input size."""

    photos: UInt8[Tensor, "n 3 H W"]
    part_maps: UInt8[Tensor, "n H W"]


@dataclass(frozen=True)
class TrainingData:
    """All that a run trains on.

    Attributes:
        reid: the ReID photos; for the baseline their part maps are all background.
        labels: (n) identity of each, 0..c-1.
        labelled: (n) which of them have a part map.
        human: the human-labelled photos, or None.
        validation: photos (m, 3, H, W), identities (m) and cameras (m; below 0 if unknown) of people kept out of
            training; perhaps none (m = 0).
        sampler: which rows make up the ReID batches.
        description: name, counts and hash of the data, for the weights' header.
    """

    reid: Labelled
    labels: Int64[Tensor, " n"]
    labelled: Bool[Tensor, " n"]
    human: Labelled | None
    validation: tuple[UInt8[Tensor, "m 3 H W"], Int64[Tensor, " m"], Int64[Tensor, " m"]]
    sampler: IdentitySampler
    description: dict[str, str | int]

    @property
    def identities(self) -> int:
        """How many identities c there are to tell apart."""
        return self.sampler.identity_count

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the identities."""
        return self.sampler.batches_per_epoch


def load_data(recipe: Recipe, *, quiet: bool = False) -> TrainingData:
    """Read everything a recipe names into memory.

    Raises:
        ValueError: something is missing or unreadable; the text names it.
    """
    people, kept_out, name = training_people(recipe.reid, recipe.validation_identities)
    labels, identities = identity_labels(people)
    sampler = IdentitySampler(labels, recipe.identities_per_batch, recipe.images_per_identity, recipe.seed)
    part_maps, labelled = _part_maps_of(people, recipe, quiet=quiet)
    reid = Labelled(read_stack([person.path for person in people], recipe.model.size), part_maps)
    human = None
    if recipe.has_human_stream:
        assert recipe.human_root is not None
        source = recipe.human_annotations, recipe.human_photos
        human = human_labelled(recipe.human_set, recipe.human_root, recipe.model.size, "train", *source, quiet=quiet)
    validation = (
        read_stack([person.path for person in kept_out], recipe.model.size),
        *identities_and_cameras(kept_out),
    )
    description: dict[str, str | int] = {
        "reid": name,
        "reid_images": len(people),
        "reid_identities": len(identities),
        "part_maps": int(labelled.sum()),
        "validation_images": len(kept_out),
        "reid_hash": data_hash(people, folder_of(recipe.reid)),
        "human": recipe.human_set if human else "off",
        "human_images": len(human.photos) if human else 0,
        "human_hash": parsing_hash(recipe.human_root) if human and recipe.human_root else "off",
    }
    return TrainingData(reid, labels, labelled, human, validation, sampler, description)


def batches_from(
    data: TrainingData, recipe: Recipe, steps: range, device: torch.device, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[ReIDBatch, ParsingBatch | None]]:
    """Both batches of consecutive steps; the next pair is prepared on a thread while one is trained on.

    Args:
        data: what to draw from.
        recipe: sizes, augmentation and seed.
        steps: counted from 0 over the whole run.
        device: where to.
        share: (rank, world): the part of each batch that this process trains on.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead: deque[Future[tuple[ReIDBatch, ParsingBatch | None]]] = deque()
        for step, rows in _reid_rows(data.sampler, steps):
            ahead.append(pool.submit(_make, data, recipe, step, rows, device, share))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _reid_rows(sampler: IdentitySampler, steps: range) -> Iterator[tuple[int, Int64[Tensor, " b"]]]:
    """The rows of every step's ReID batch, an epoch drawn at a time."""
    epoch, batches = -1, torch.empty(0, 0, dtype=torch.int64)
    for step in steps:
        wanted, place = divmod(step, sampler.batches_per_epoch)
        if wanted != epoch:
            epoch, batches = wanted, sampler.epoch(wanted)
        yield step, batches[place]


def _make(
    data: TrainingData, recipe: Recipe, step: int, rows: Tensor, device: torch.device, share: tuple[int, int]
) -> tuple[ReIDBatch, ParsingBatch | None]:
    rank, world = share
    rows = rows.chunk(world)[rank]
    chance = generator_for(recipe.seed, "reid", step, rank)
    here = data.labelled[rows]
    labelled = None if bool(here.all()) else here.nonzero().flatten().to(device)
    reid = ReIDBatch(*_varied(data.reid, rows, recipe, chance, device), data.labels[rows].to(device), labelled)
    if data.human is None:
        return reid, None
    # Its own stream of chance: with or without it, the ReID batches of a seed are the same.
    chance = generator_for(recipe.seed, "human", step, rank)
    drawn = torch.randint(len(data.human.photos), (recipe.human_batch // world,), generator=chance)
    return reid, ParsingBatch(*_varied(data.human, drawn, recipe, chance, device))


def _varied(
    source: Labelled, rows: Tensor, recipe: Recipe, chance: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    photos, maps = source.photos[rows].to(device), source.part_maps[rows].to(device)
    image, part_map = augment(photos, maps, recipe.augmentation, chance, recipe.model.mean)
    return image, to_cells(part_map, recipe.model.cells)


def folder_of(reid: Path) -> Path:
    """The folder that the photos' names are relative to, however it was given."""
    return reid.parent if reid.is_file() else locate(find_data_set(reid), reid)


def training_people(reid: Path, validation_identities: int) -> tuple[list[Person], list[Person], str]:
    """The photos to train on, those kept out for validation, and a name for both.

    Args:
        reid: a data set, of which the training split is taken, or a table of photos.
        validation_identities: so many identities, the last ones, are kept out.

    Raises:
        RecipeError: nobody is left to train on.
    """
    if reid.is_file():
        people, name = read_table(reid), reid.name
    else:
        name = find_data_set(reid)
        people = read_split(name, reid, "train")
    _, identities = identity_labels(people)
    if validation_identities >= len(identities):
        raise RecipeError(f"validation_identities leaves none of the {len(identities)} identities to train on")
    chosen = set(identities[: len(identities) - validation_identities])
    train = [person for person in people if person.identity in chosen]
    return train, [person for person in people if person.identity not in chosen], name


def identities_and_cameras(people: Sequence[Person]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Numbers of people's identities, and of their cameras, -1 where none is known."""
    cameras = {person.camera: number for number, person in enumerate(people) if person.camera is not None}
    camera = [-1 if person.camera is None else cameras[person.camera] for person in people]
    return identity_labels(people)[0], torch.tensor(camera, dtype=torch.int64)


def _part_maps_of(
    people: Sequence[Person], recipe: Recipe, *, quiet: bool
) -> tuple[UInt8[Tensor, "n H W"], Bool[Tensor, " n"]]:
    """The photos' part maps, and which photos have one; background where there is none."""
    maps, labelled = torch.zeros(len(people), *recipe.model.size, dtype=torch.uint8), torch.zeros(len(people)).bool()
    if recipe.part_maps is None or recipe.model.baseline:
        return maps, ~labelled
    root = recipe.reid if recipe.reid.is_dir() else recipe.reid.parent
    paths = {row: recipe.part_maps / mirrored(person.path, root) for row, person in enumerate(people)}
    present = {row: path for row, path in paths.items() if path.is_file()}
    if not present:
        raise RecipeError(f"part_maps: none of {len(paths)} photos has a part map; sought {paths[0]} and so on")
    if (missing := len(paths) - len(present)) and not quiet:
        remark(f"{missing} of {len(paths)} photos have no part map: they train the identity and triplet losses alone")
    with ThreadPoolExecutor() as pool:
        read = pool.map(partial(read_part_map, size=recipe.model.size), present.values())
        for row, part_map in zip(present, tracked(read, "part maps", len(present), quiet=quiet), strict=True):
            if int(part_map.max()) > len(PARTS):
                raise RecipeError(
                    f"{paths[row]}: holds the label {int(part_map.max())}; a part map has 0..{len(PARTS)}"
                )
            maps[row], labelled[row] = part_map, True
    return maps, labelled


def mirrored(photo: Path, root: Path) -> Path:
    """Where a photo's part map lies in a folder of part maps that mirrors the photos' folder."""
    try:
        return photo.relative_to(root).with_suffix(".png")
    except ValueError:
        return Path(photo.name).with_suffix(".png")


def human_labelled(
    human_set: str,
    root: Path,
    size: tuple[int, int],
    split: Literal["train", "val"],
    annotations: str,
    photos: str,
    *,
    margin: float = MARGIN,
    quiet: bool = False,
) -> Labelled:
    """The crops of a human-labelled parsing set, in memory; what cannot be read is named and left out.

    Args:
        human_set: `pascal` or `densepose`.
        root: its folder.
        size: (height, width) of the crops in pixels.
        split: of Pascal-Person-Part; DensePose-COCO's splits are files of annotations.
        annotations: DensePose-COCO's file, below the root.
        photos: COCO's folder of photos, below the root.
        margin: around a person of Pascal-Person-Part, as a share of the person's height.
        quiet: no progress bar.
    """
    failures: list[Failure] = []
    if human_set == "pascal":
        samples = read_pascal(root, split, size, failures, margin)
    else:
        samples = read_densepose(root / annotations, root / photos, size, failures=failures)
    crops, part_maps = stack(tracked(samples, human_set, None, quiet=quiet))
    tell_skipped(failure.reason for failure in failures)
    return Labelled(crops, part_maps)
