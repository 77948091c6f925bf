from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from hpnet.data.photos import PhotoError, read_part_map, read_photo
from hpnet.data.reid import DataSetError, data_hash, read_split
from hpnet.data.sampler import generator_for
from hpnet.data.transforms import Augmentation
from hpnet.model import ModelConfig
from hpnet.parts import visible_parts
from hpnet.training.batches import ParsingBatch, ReIDBatch, TrainingData, batches_from, load_data, mirrored
from hpnet.training.recipe import Recipe, RecipeError

CPU = torch.device("cpu")
PLAIN = Augmentation(flip=0.0)
Tiny = Callable[..., Recipe]


def drawn_steps(
    data: TrainingData, recipe: Recipe, steps: range, share: tuple[int, int] = (0, 1)
) -> list[tuple[ReIDBatch, ParsingBatch | None]]:
    return list(batches_from(data, recipe, steps, CPU, share))


def same(one: ReIDBatch | ParsingBatch | None, other: ReIDBatch | ParsingBatch | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = [(mine, getattr(other, name)) for name, mine in vars(one).items()]
    return all(
        mine is theirs if mine is None or theirs is None else torch.equal(mine, theirs) for mine, theirs in pairs
    )


@pytest.fixture
def copied(dolls: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set that may be spoilt."""
    return Path(shutil.copytree(dolls, tmp_path / "Market-1501"))


# --- what is read


def test_all_training_photos_are_read_with_their_part_maps(tiny: Tiny, dolls: Path) -> None:
    data = load_data(tiny(), quiet=True)
    people = read_split("market1501", dolls, "train")
    assert len(people) == len(data.labels) == len(data.reid.photos) == len(data.reid.part_maps) == 32
    identities = sorted({person.identity for person in people}, key=str)
    for row, person in enumerate(people):
        assert identities[int(data.labels[row])] == person.identity
        assert torch.equal(data.reid.photos[row], read_photo(person.path, (64, 32)))
        part_map = dolls / "part_maps" / "bounding_box_train" / f"{person.path.stem}.png"
        assert torch.equal(data.reid.part_maps[row], read_part_map(part_map, (64, 32)))
    assert data.human is None
    assert (data.identities, data.steps_per_epoch) == (8, 2)


def test_the_description_names_the_data(tiny: Tiny, dolls: Path, pascal: Path) -> None:
    description = load_data(tiny(human_set="pascal", human_root=pascal), quiet=True).description
    assert description["reid"] == "market1501"
    assert (description["reid_images"], description["reid_identities"]) == (32, 8)
    assert description["reid_hash"] == data_hash(read_split("market1501", dolls, "train"), dolls)
    assert description["human"] == "pascal"
    assert description["human_images"] == 8
    assert len(str(description["human_hash"])) == 64
    assert load_data(tiny(), quiet=True).description["human"] == "off"


def test_the_last_identities_are_kept_for_validation(tiny: Tiny) -> None:
    everything, some = load_data(tiny(), quiet=True), load_data(tiny(validation_identities=3), quiet=True)
    assert some.identities == 5
    kept = everything.labels < 5
    assert torch.equal(some.labels, everything.labels[kept])
    assert torch.equal(some.reid.photos, everything.reid.photos[kept])
    assert torch.equal(some.reid.part_maps, everything.reid.part_maps[kept])
    photos, labels, cameras = some.validation
    assert torch.equal(photos, everything.reid.photos[~kept])
    assert torch.equal(labels, everything.labels[~kept] - 5)
    assert [int((cameras == camera).sum()) for camera in cameras.unique()] == [6, 6]
    assert some.description["validation_images"] == 12
    assert len(everything.validation[0]) == 0


@pytest.mark.parametrize("count", [8, 9, 12])
def test_somebody_must_be_left_to_train_on(count: int, tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match="validation_identities leaves none of the 8"):
        load_data(tiny(validation_identities=count), quiet=True)


def test_more_identities_in_a_batch_than_there_are(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="9 identities cannot be drawn from 8"):
        load_data(tiny(identities_per_batch=9), quiet=True)


def test_a_table_of_photos_will_do(tiny: Tiny, dolls: Path, tmp_path: Path) -> None:
    """Its part maps mirror the folder in which the table lies."""
    folder = Path(shutil.copytree(dolls / "bounding_box_train", tmp_path / "mine" / "crops")).parent
    rows = [f"crops/{path.name},who{path.name[:4]}" for path in sorted((folder / "crops").iterdir())]
    (folder / "people.csv").write_text("path,identity\n" + "\n".join(rows))
    shutil.copytree(dolls / "part_maps" / "bounding_box_train", folder / "maps" / "crops")
    data = load_data(tiny(reid=folder / "people.csv", part_maps=folder / "maps"), quiet=True)
    known = load_data(tiny(), quiet=True)
    assert torch.equal(data.labels, known.labels)
    assert torch.equal(data.reid.part_maps, known.reid.part_maps)
    assert data.description["reid"] == "people.csv"


def test_the_baseline_needs_no_part_maps(tiny: Tiny, pascal: Path) -> None:
    baseline = ModelConfig(trunk="resnet18", branch="compact", size=(64, 32), baseline=True)
    recipe = tiny(model=baseline, part_maps=None, human_set="pascal", human_root=pascal)
    data = load_data(recipe, quiet=True)
    assert not bool(data.reid.part_maps.any())
    assert data.human is None


def test_the_human_labelled_set_is_read(tiny: Tiny, pascal: Path) -> None:
    data = load_data(tiny(human_set="pascal", human_root=pascal), quiet=True)
    assert data.human is not None
    assert data.human.photos.shape == (8, 3, 64, 32)
    assert bool(visible_parts(data.human.part_maps).all())


# --- what cannot be read


def test_photos_without_part_maps_are_counted_and_known(
    tiny: Tiny, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = sorted((copied / "part_maps" / "bounding_box_train").iterdir())
    for path in maps[:3]:
        path.unlink()
    recipe = tiny(reid=copied, part_maps=copied / "part_maps")
    data = load_data(recipe)
    assert (
        "3 of 32 photos have no part map: they train the identity and triplet losses alone" in capsys.readouterr().err
    )
    assert data.description["part_maps"] == 29
    assert data.labelled.tolist() == [False] * 3 + [True] * 29
    seen = 0
    for step, (batch, _) in enumerate(batches_from(data, recipe, range(4), torch.device("cpu"))):
        rows = next(iter(data.sampler.epoch(step // 2)[[step % 2]]))
        expected = data.labelled[rows].nonzero().flatten().tolist()
        assert (list(range(len(rows))) if batch.labelled is None else batch.labelled.tolist()) == expected
        seen += len(rows) - len(expected)
    assert seen


def test_a_folder_without_any_part_map_is_named(tiny: Tiny, copied: Path) -> None:
    with pytest.raises(RecipeError, match=r"part_maps: none of 32 photos has a part map; sought .*nowhere"):
        load_data(tiny(part_maps=copied / "nowhere"), quiet=True)


def test_a_part_map_with_foreign_labels_is_named(tiny: Tiny, copied: Path) -> None:
    path = sorted((copied / "part_maps" / "bounding_box_train").iterdir())[5]
    Image.new("L", (32, 64), 7).save(path)
    with pytest.raises(RecipeError, match=rf"{path.name}: holds the label 7; a part map has 0\.\.4"):
        load_data(tiny(reid=copied, part_maps=copied / "part_maps"), quiet=True)


@pytest.mark.parametrize("kind", ["photo", "part map"])
def test_a_truncated_file_is_named(kind: str, tiny: Tiny, copied: Path) -> None:
    folder = copied / "bounding_box_train" if kind == "photo" else copied / "part_maps" / "bounding_box_train"
    path = sorted(folder.iterdir())[7]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PhotoError, match=path.name) as caught:
        load_data(tiny(reid=copied, part_maps=copied / "part_maps"), quiet=True)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_data_set_is_named(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError, match="empty"):
        load_data(tiny(reid=tmp_path / "empty"), quiet=True)
    with pytest.raises(DataSetError, match="gone"):
        load_data(tiny(reid=tmp_path / "gone"), quiet=True)


def test_a_bad_photo_of_the_human_labelled_set_is_skipped_aloud(
    tiny: Tiny, pascal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(pascal, tmp_path / "pascal"))
    (root / "JPEGImages" / "doll3.jpg").write_bytes(b"")
    data = load_data(tiny(human_set="pascal", human_root=root), quiet=True)
    assert "doll3.jpg" in capsys.readouterr().err
    assert data.human is not None
    assert len(data.human.photos) == 7


# --- batches


def test_a_batch_is_photos_maps_and_identities_of_the_same_people(tiny: Tiny) -> None:
    recipe = tiny(augmentation=PLAIN)
    data = load_data(recipe, quiet=True)
    for step, (batch, human) in enumerate(drawn_steps(data, recipe, range(5))):
        rows = data.sampler.epoch(step // 2)[step % 2]
        assert human is None
        assert torch.equal(batch.image, data.reid.photos[rows].float() / 255)
        assert torch.equal(batch.identity, data.labels[rows])
        assert batch.part_map.shape == (8, 4, 2)
        assert torch.equal(batch.part_map, data.reid.part_maps[rows][:, 8::16, 8::16])


@pytest.mark.parametrize("stride", [8, 16])
def test_part_maps_fit_the_networks_cells(stride: int, tiny: Tiny) -> None:
    model = ModelConfig(trunk="resnet18", branch="compact", size=(64, 32), stride=stride)  # type: ignore[arg-type]
    recipe = tiny(model=model)
    [(batch, _)] = drawn_steps(load_data(recipe, quiet=True), recipe, range(1))
    assert batch.part_map.shape[1:] == model.cells == (64 // stride, 32 // stride)


def test_a_steps_batches_depend_on_seed_and_step_alone(tiny: Tiny, pascal: Path) -> None:
    recipe = tiny(human_set="pascal", human_root=pascal, augmentation=Augmentation(flip=0.5, colour=0.5, occlusion=0.5))
    data = load_data(recipe, quiet=True)
    run = drawn_steps(data, recipe, range(9))
    late = drawn_steps(data, recipe, range(6, 9))
    assert all(map(same, chain(*run[6:]), chain(*late)))
    for one in range(9):
        for other in range(one):
            assert not same(run[one][0], run[other][0])
            assert not same(run[one][1], run[other][1])
    other_seed = replace(data, sampler=replace(data.sampler, seed=1))
    assert not any(map(same, chain(*run), chain(*drawn_steps(other_seed, replace(recipe, seed=1), range(9)))))


def test_the_second_stream_does_not_change_the_first(tiny: Tiny, pascal: Path) -> None:
    alone, both = tiny(), tiny(human_set="pascal", human_root=pascal)
    first = drawn_steps(load_data(alone, quiet=True), alone, range(4))
    second = drawn_steps(load_data(both, quiet=True), both, range(4))
    assert all(same(one[0], other[0]) for one, other in zip(first, second, strict=True))
    assert all(one[1] is None for one in first)


def test_every_batch_has_a_chance_of_its_own(tiny: Tiny, pascal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the n-th photo is mirrored must not be the same in both streams, two steps, two processes or epochs."""
    recipe = tiny(human_set="pascal", human_root=pascal)
    data = load_data(recipe, quiet=True)
    states: list[bytes] = []

    def noted(*place: int | str) -> torch.Generator:
        generator = generator_for(*place)  # type: ignore[arg-type]
        states.append(generator.get_state().numpy().tobytes())
        return generator

    for module in ("hpnet.training.batches", "hpnet.data.sampler"):
        monkeypatch.setattr(f"{module}.generator_for", noted)
    for rank in (0, 1):
        drawn_steps(data, recipe, range(10), (rank, 2))
    epochs = 5
    assert len(states) == 2 * (2 * 10 + epochs)
    assert len(set(states)) == 2 * 2 * 10 + epochs  # both processes draw the same epochs


def test_human_photos_and_maps_belong_together(tiny: Tiny, pascal: Path) -> None:
    recipe = tiny(human_set="pascal", human_root=pascal, augmentation=PLAIN)
    data = load_data(recipe, quiet=True)
    assert data.human is not None
    seen = set()
    for _, batch in drawn_steps(data, recipe, range(12)):
        assert batch is not None
        assert batch.image.shape == (4, 3, 64, 32)
        for image, part_map in zip(batch.image, batch.part_map, strict=True):
            [row] = [n for n, photo in enumerate(data.human.photos) if torch.equal(photo.float() / 255, image)]
            assert torch.equal(part_map, data.human.part_maps[row, 8::16, 8::16])
            seen.add(row)
    assert len(seen) == 8


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_batch(world: int, tiny: Tiny, pascal: Path) -> None:
    """Together they have what one would have had; whole identities stay together."""
    recipe = tiny(human_set="pascal", human_root=pascal, augmentation=PLAIN)
    data = load_data(recipe, quiet=True)
    shares = [drawn_steps(data, recipe, range(3), (rank, world)) for rank in range(world)]
    for step, (whole, _) in enumerate(drawn_steps(data, recipe, range(3))):
        pieces = [share[step] for share in shares]
        assert torch.equal(torch.cat([reid.image for reid, _ in pieces]), whole.image)
        assert torch.equal(torch.cat([reid.identity for reid, _ in pieces]), whole.identity)
        assert all(len(human.image) == 4 // world for _, human in pieces if human is not None)
        assert all(reid.identity.unique().numel() == 4 // world for reid, _ in pieces)
        assert not same(pieces[0][1], pieces[1][1])


def test_a_fault_on_the_loaders_thread_comes_through(tiny: Tiny) -> None:
    recipe = tiny()
    data = load_data(recipe, quiet=True)
    broken = replace(data, reid=replace(data.reid, part_maps=torch.full_like(data.reid.part_maps, 9)))
    with pytest.raises((RuntimeError, IndexError)):
        drawn_steps(broken, recipe, range(2))


def test_part_maps_mirror_the_photos() -> None:
    assert mirrored(Path("/data/m/query/a.jpg.jpg"), Path("/data/m")) == Path("query/a.jpg.png")
    assert mirrored(Path("/elsewhere/b.tif"), Path("/data/m")) == Path("b.png")
