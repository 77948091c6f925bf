from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own abbreviation)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hpnet import weights
from hpnet.data.photos import PhotoError, read_photo
from hpnet.embed import Embedder, embed, read_features, write_features
from hpnet.files import fingerprint as fingerprint_of_file
from hpnet.model import HPNet
from hpnet.parts import PartFeatures
from test_model import SMALL, assert_agree, blinded, drawn, trained


def model_of_parts() -> HPNet:
    """A model that finds each part in a few places of some photos."""
    model = trained(SMALL())
    with torch.no_grad():
        logits = model.parse(drawn(20, 3, 64, 32, seed=7))
        for part, head in enumerate(model.parsing_heads):
            head.conv2.bias -= logits[:, part].quantile(0.85)  # type: ignore[union-attr, operator]
    return model


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(model_of_parts(), device="cpu")


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    weights.save(model_of_parts(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def photo_file(path: Path, seed: int, size: tuple[int, int] = (80, 40)) -> Path:
    """A colourful picture; lossless unless it is called .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = F.interpolate(drawn(1, 3, 8, 4, seed=seed), size, mode="bilinear")[0]
    Image.fromarray((coarse * 255).byte().permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos, of which two cannot be read."""
    photos = tmp_path / "photos"
    for number in range(3):
        photo_file(photos / f"{'sub/' if number == 1 else ''}{number}.png", number)
    (photos / "1-empty.jpg").write_bytes(b"")
    (photos / "9-torn.png").write_bytes((photos / "0.png").read_bytes()[:100])
    return photos


# --- what comes out


def test_the_visible_parts_have_unit_length_and_are_the_networks(embedder: Embedder) -> None:
    images = drawn(12, 3, 64, 32)
    with torch.no_grad():
        output = embedder.model(images)
    found = embedder(images)
    assert 0 < int(found.visibility.sum()) < found.visibility.numel()
    assert torch.equal(found.visibility, output.visibility)
    assert found.features.dtype == torch.float32
    lengths = found.features.norm(dim=-1)
    torch.testing.assert_close(lengths[found.visibility], torch.ones(int(found.visibility.sum())))
    direction = output.embedding / output.embedding.norm(dim=-1, keepdim=True)
    assert_agree(found.features[found.visibility], direction[found.visibility])
    assert not found.features.is_inference()  # ordinary tensors, which may be changed and differentiated through


def test_nothing_found_is_nothing_visible() -> None:
    found = Embedder(blinded(model_of_parts()), device="cpu")(drawn(3, 3, 64, 32))
    assert not bool(found.visibility.any())
    assert bool(found.features.isfinite().all())


def test_a_part_without_direction_is_not_comparable() -> None:
    """A visible part whose vector is zero cannot have unit length."""
    model = model_of_parts()
    for neck in model.necks:
        neck.weight.data.zero_()  # type: ignore[union-attr, operator]
        neck.running_mean.zero_()  # type: ignore[union-attr, operator]
    found = Embedder(model, device="cpu")(drawn(4, 3, 64, 32))
    assert bool(model(drawn(4, 3, 64, 32)).visibility.any())
    assert not bool(found.visibility.any())


def test_no_photos_give_no_rows(embedder: Embedder) -> None:
    for nothing in (torch.empty(0, 3, 64, 32), torch.empty(0, 3, 100, 50, dtype=torch.uint8), []):
        found = embedder(nothing)
        assert found.features.shape == (0, 4, 256)
        assert found.visibility.shape == (0, 4)


def test_the_baseline_has_one_part_always_visible() -> None:
    found = Embedder(trained(SMALL(baseline=True)), device="cpu")(drawn(3, 3, 64, 32))
    assert found.features.shape == (3, 1, 256)
    assert bool(found.visibility.all())


# --- what may come in


@given(st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=15, deadline=None)
def test_photos_of_any_size_are_taken(embedder: Embedder, height: int, width: int) -> None:
    assert len(embedder(drawn(2, 3, height, width))) == 2


def test_bytes_and_floats_say_the_same(embedder: Embedder) -> None:
    for size in ((64, 32), (100, 60)):
        bytes_ = (drawn(4, 3, *size) * 255).byte()
        one, other = embedder(bytes_), embedder(bytes_.float() / 255)
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.visibility, other.visibility)
        assert_agree(embedder(bytes_.double() / 255).features, one.features)


def test_resizing_averages_what_it_shrinks(embedder: Embedder) -> None:
    """A fine chequerboard becomes grey, not a moiré of black and white."""
    board = (torch.arange(640)[:, None] + torch.arange(320)[None]).remainder(2).float().expand(1, 3, -1, -1)
    entering: list[Tensor] = []
    hook = embedder.model.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    embedder(board)
    hook.remove()
    assert entering[0].shape == (1, 3, 64, 32)
    assert float((entering[0] - 0.5).abs().max()) < 0.01


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batch_size_does_not_matter(embedder: Embedder, batch_size: int, folder: Path) -> None:
    images = drawn(7, 3, 70, 30)
    expected, found = embedder(images), Embedder(embedder.model, device="cpu", batch_size=batch_size)(images)
    assert_agree(found.features, expected.features)
    assert torch.equal(found.visibility, expected.visibility)
    paths = [folder / "2.png", folder / "0.png", folder / "sub/1.png", folder / "0.png"]
    by_file = Embedder(embedder.model, device="cpu", batch_size=batch_size)(paths)
    assert_agree(by_file.features, embedder(paths).features)


def test_paths_keep_their_order(embedder: Embedder, folder: Path) -> None:
    order = [folder / "2.png", folder / "0.png", folder / "sub/1.png"]
    found = embedder([str(path) for path in order])
    for row, path in enumerate(order):
        alone = embedder(path)
        assert len(alone) == 1
        assert_agree(found[row].features, alone.features)
        assert_agree(embedder(str(path)).features, alone.features)
        photo = read_photo(path, embedder.model.config.size)
        assert_agree(embedder(photo[None]).features, alone.features)
    assert not torch.allclose(found.features[0], found.features[1])


def test_bad_files_are_left_out_and_named(embedder: Embedder, folder: Path) -> None:
    good = [folder / "0.png", folder / "sub/1.png", folder / "2.png"]
    mixed = [good[0], folder / "1-empty.jpg", good[1], folder / "gone.jpg", folder / "9-torn.png", good[2]]
    embedded = embedder.embed_files(mixed)
    assert list(embedded.paths) == good
    assert [failure.path.name for failure in embedded.failures] == ["1-empty.jpg", "gone.jpg", "9-torn.png"]
    assert all(str(failure.path) in failure.reason for failure in embedded.failures)
    assert_agree(embedded.features.features, embedder(good).features)


def test_asked_for_one_bad_file_it_is_named(embedder: Embedder, folder: Path) -> None:
    with pytest.raises(PhotoError, match=r"1-empty\.jpg.*empty"):
        embedder([folder / "0.png", folder / "1-empty.jpg"])
    with pytest.raises(PhotoError, match=r"gone\.jpg"):
        embedder(folder / "gone.jpg")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 3, 8, 8), 2.0), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), -0.1), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), torch.inf), r"\[0, 1\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8"),
    ],
    ids=["above", "below", "nan", "infinite", "integers"],
)
def test_numbers_that_are_no_picture_are_refused(embedder: Embedder, images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        embedder(images)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Embedder(HPNet(SMALL()), batch_size=0)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used on this machine") as caught:
        Embedder(HPNet(SMALL()), device=device)
    assert "\n" not in str(caught.value)


# --- weights


def test_weights_come_from_a_file_or_a_model(weights_file: Path) -> None:
    images = drawn(3, 3, 64, 32)
    from_file = Embedder(weights_file, device="cpu")
    from_text = Embedder(str(weights_file), device="cpu")
    from_model = Embedder(model_of_parts(), device="cpu")
    assert torch.equal(from_file(images).features, from_model(images).features)
    assert from_file.fingerprint == from_text.fingerprint == fingerprint_of_file(weights_file)


def test_the_fingerprint_of_a_model_follows_every_value() -> None:
    one, same, other, third = (trained(SMALL(), seed) for seed in (1, 1, 1, 2))
    other.trunk.layer3[1].bn2.running_var[3] += 1e-6  # type: ignore[index, union-attr, operator]
    prints = [Embedder(model, device="cpu").fingerprint for model in (one, same, other, third)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    normalised_otherwise = trained(SMALL(mean=(0.5, 0.5, 0.5)), 1)
    assert Embedder(normalised_otherwise, device="cpu").fingerprint != prints[0]


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError, match=r"gone\.safetensors"):
        Embedder(tmp_path / "gone.safetensors")


# --- part maps


def test_part_maps_show_the_likeliest_part(embedder: Embedder) -> None:
    images = drawn(5, 3, 64, 32)
    logits = embedder.look(images).parsing_logits
    assert logits is not None
    found = embedder.part_maps(images)
    assert found.dtype == torch.uint8
    assert found.shape == (5, 4, 2)
    for image, row, column in np.ndindex(5, 4, 2):
        values = logits[image, :, row, column]
        expected = int(values.argmax()) + 1 if float(values.max()) > 0 else 0
        assert int(found[image, row, column]) == expected
    assert 0 in found
    assert len(found.unique()) > 2


def test_the_baseline_has_no_part_maps() -> None:
    with pytest.raises(ValueError, match="baseline"):
        Embedder(trained(SMALL(baseline=True)), device="cpu").part_maps(drawn(1, 3, 64, 32))


# --- files of features


def some_features(count: int = 3) -> PartFeatures:
    features = F.normalize(torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    return PartFeatures(features, drawn(count, 4) > 0.3)


@pytest.mark.parametrize("count", [0, 3])
def test_written_features_are_read_back(count: int, tmp_path: Path) -> None:
    names = [f"Straße/{number} 人.jpg" for number in range(count)]
    write_features(tmp_path / "new" / "f.npz", some_features(count), names, "abc")
    features, read, fingerprint = read_features(tmp_path / "new" / "f.npz")
    assert torch.equal(features.features, some_features(count).features)
    assert torch.equal(features.visibility, some_features(count).visibility)
    assert (read, fingerprint) == (names, "abc")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f.npz"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    write_features(path, some_features(), ["a", "b", "c"], "abc")
    before = path.read_bytes()

    def cut_off(file: Any, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_features(path, some_features(2), ["a", "b"], "abc")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path: Path) -> None:
    """One bit of the features is wrong; the archive's checksum tells."""
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def _pickled(path: Path) -> None:
    np.savez(path, features=np.array([{}], dtype=object), visibility=np.zeros(1), paths=np.zeros(1), weights="")


def _without(path: Path) -> None:
    np.savez(path, features=np.zeros((1, 4, 2), np.float32))


def _of_other_length(path: Path) -> None:
    np.savez(path, **{**np.load(path), "features": 2 * np.load(path)["features"]})


def _with_too_few_names(path: Path) -> None:
    np.savez(path, **{**np.load(path), "paths": np.array(["one"])})


def _one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _no_numpy(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features", "text")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # np.load(path)[...] above
@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"text"),
        lambda path: path.write_bytes(b"\x80\x04N."),
        _torn, _flipped, _pickled, _without, _of_other_length, _with_too_few_names, _one_array, _no_numpy,
    ],
    ids=["gone", "empty", "text", "pickle", "torn", "flipped", "objects", "without", "length", "names", "array", "zip"],
)  # fmt: skip
def test_a_file_that_holds_no_features_is_named(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    write_features(path, some_features(), ["a", "b", "c"], "abc")
    spoil(path)
    with pytest.raises(ValueError, match=r"f\.npz: not a file of embedded photos") as caught:
        read_features(path)
    assert "\n" not in str(caught.value)


# --- the verb


def test_the_verb_embeds_a_folder_and_reports_bad_files(
    weights_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], embedder: Embedder
) -> None:
    assert embed(weights_file, folder, tmp_path / "out.npz", device="cpu", json=True) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"embedded": 3, "skipped": 2, "out": str(tmp_path / "out.npz")}
    assert "1-empty.jpg" in said.err
    assert "9-torn.png" in said.err
    features, names, fingerprint = read_features(tmp_path / "out.npz")
    assert names == ["0.png", "2.png", "sub/1.png"]
    assert fingerprint == fingerprint_of_file(weights_file)
    assert_agree(features.features, embedder([folder / name for name in names]).features)


def test_the_verb_embeds_one_photo(
    weights_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(weights_file, folder / "sub/1.png", tmp_path / "out.npz", device="cpu") == 0
    assert "1 photos embedded, 0 skipped" in capsys.readouterr().out
    assert read_features(tmp_path / "out.npz")[1] == ["1.png"]


def test_the_verb_names_an_empty_folder(weights_file: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PhotoError, match="nothing: holds no pictures"):
        embed(weights_file, tmp_path / "nothing", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
