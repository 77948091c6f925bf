from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpnet.data.photos import (
    Failure,
    PhotoError,
    find_photos,
    read_part_map,
    read_photo,
    read_photos,
    read_size,
    read_stack,
    write_part_map,
    write_picture,
)
from hpnet.parts import PARTS

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by the letter, for kinds that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int = 48, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(path: Path) -> list[list[tuple[int, ...]]]:
    """The photo as rows of (red, green, blue)."""
    return [[tuple(pixel) for pixel in row] for row in read_photo(path).permute(1, 2, 0).tolist()]


# Read: every odd kind comes out as 8-bit RGB, and as the right colours.


def test_a_plain_photo_is_read_exactly_and_in_channel_row_column_order(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), RED)
    image.putpixel((2, 0), BLUE)
    image.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.dtype == torch.uint8
    assert photo.shape == (3, 2, 3)
    assert photo.is_contiguous()
    assert photo[:, 0, 2].tolist() == list(BLUE)
    assert photo[:, 1, 2].tolist() == list(RED)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    [red, green, blue] = read_photo(tmp_path / "a.jpg")[:, 4, 4].tolist()
    assert red > 250
    assert max(green, blue) < 5


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = (0, 257, 200 * 257, 65535)
    (tmp_path / "a.png").write_bytes(png(4, 1, 16, 0, b"\0" + struct.pack(">4H", *values)))
    Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        assert pixels(tmp_path / name) == [[(0, 0, 0), (1, 1, 1), (200, 200, 200), (255, 255, 255)]]


def test_16_bit_rgb_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 65535, 32896, 0, 0, 0, 65535)))
    assert pixels(tmp_path / "a.png") == [[(255, 128, 0), (0, 0, 255)]]


def test_float_pictures_are_taken_by_their_range_and_nan_is_black(tmp_path: Path) -> None:
    for high in (1.0, 255.0):
        Image.fromarray(np.array([[0, high, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
        assert pixels(tmp_path / "a.tif") == [[(0, 0, 0), (255, 255, 255), (0, 0, 0)]]


def test_palette_and_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png")
    assert pixels(tmp_path / "palette.png") == [[RED, GREEN]]
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixels(tmp_path / "clear.png") == [[RED, (128, 128, 128)]]
    half = Image.new("RGBA", (1, 1), (*RED, 128))
    half.save(tmp_path / "half.png")
    [[(red, green, blue)]] = pixels(tmp_path / "half.png")
    assert (abs(red - 192) <= 1, abs(green - 64) <= 1, abs(blue - 64) <= 1) == (True, True, True)


@pytest.mark.parametrize(("mode", "colour", "grey"), [("1", 1, 255), ("L", 77, 77), ("LA", (77, 255), 77)])
def test_grey_kinds_become_rgb(mode: str, colour: int | tuple[int, int], grey: int, tmp_path: Path) -> None:
    Image.new(mode, (2, 2), colour).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[(grey,) * 3] * 2] * 2


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {})])
def test_of_an_animation_the_first_frame_counts(suffix: str, options: dict[str, bool], tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3
    assert pixels(tmp_path / f"a.{suffix}") == [[RED] * 2] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int, tmp_path: Path) -> None:
    # The scene stands upright; the camera stored it turned or mirrored and said how.
    scene = np.zeros((2, 3, 3), dtype=np.uint8)
    scene[0, 0], scene[0, 2], scene[1, 0] = RED, GREEN, BLUE
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](scene))).save(tmp_path / "a.png", exif=exif)
    assert pixels(tmp_path / "a.png") == [[tuple(pixel) for pixel in row] for row in scene.tolist()]
    assert read_size(tmp_path / "a.png") == (2, 3)


def test_resizing_is_to_height_and_width(tmp_path: Path) -> None:
    noise(48, 24).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png", (10, 20)).shape == (3, 10, 20)
    # Antialiased: one pixel out of all is their mean, not one of them.
    mean = np.asarray(noise(48, 24)).reshape(-1, 3).mean(0)
    assert np.allclose(read_photo(tmp_path / "a.png", (1, 1)).flatten().numpy(), mean, atol=12)


# Bad: one clear line that names the file.


def _bad_files(folder: Path) -> dict[str, str]:
    """Write every kind of bad file; gives each one's name and what is to be said of it."""
    photo = {kind: encoded(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")}
    contents = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"no picture at all\n", "not a picture that can be read"),
        "start.png": (photo["PNG"][:20], ""),
        "bomb.png": (png(60_000, 60_000, 1, 0, bytes(100)), "64,000,000 pixels; shrink the picture"),
        "large.png": (png(8_001, 8_000, 1, 0, bytes(100)), "8001 x 8000 pixels are more than the limit of 64,000,000"),
        **{f"cut.{kind.lower()}": (content[: len(content) // 2], "") for kind, content in photo.items()},
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    said = {name: said for name, (_, said) in contents.items()}
    return said | {"folder.jpg": "a folder, not a picture", "none.jpg": "no such file"}


@pytest.mark.parametrize("size", [None, (8, 4)])
def test_bad_files_are_explained_in_one_line(size: tuple[int, int] | None, tmp_path: Path) -> None:
    for name, said in _bad_files(tmp_path).items():
        with pytest.raises(PhotoError) as caught:
            read_photo(tmp_path / name, size)
        line = str(caught.value)
        assert line.startswith(f"{tmp_path / name}: ")
        assert said in line
        assert "\n" not in line


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.png").write_bytes(png(8_001, 8_000, 1, 0, bytes(100)))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="shrink the picture"):
        read_photo(tmp_path / "large.png")
    with pytest.raises(PhotoError, match="shrink the picture"):
        read_size(tmp_path / "large.png")


KINDS = {
    "a.jpg": encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "a.png": encoded(noise(), "PNG"),
    "a.gif": encoded(noise(), "GIF"),
    "a.webp": encoded(noise(), "WEBP"),
    "a.bmp": encoded(noise(), "BMP"),
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_damage_gives_a_photo_or_a_photo_error_and_nothing_else(
    tmp_path: Path, name: str, damage: list[tuple[float, int]], early: bool
) -> None:
    content = bytearray(KINDS[name])
    for place, byte in damage:
        content[int(place * min(len(content), 120 if early else len(content)))] = byte
    (tmp_path / name).write_bytes(content)
    for read in (read_photo, read_size):
        with suppress(PhotoError):
            read(tmp_path / name)


def test_files_are_closed_also_when_they_are_bad(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encoded(noise(), "PNG")[:500])
    noise().save(tmp_path / "good.png")
    opened = []
    original = Image.open

    def remembering(path: Path) -> Image.Image:
        opened.append(original(path))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", remembering)
        read_photo(tmp_path / "good.png")
        with pytest.raises(PhotoError):
            read_photo(tmp_path / "cut.png")
    assert [image.fp is None or image.fp.closed for image in opened] == [True, True]


def test_warnings_are_as_before_after_many_threads_have_decoded(tmp_path: Path) -> None:
    # warnings.catch_warnings, entered and left crosswise by threads, leaves the process deaf.
    for number in range(40):
        noise(8 + number).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_photo, find_photos(tmp_path) * 10))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


# Many.


def test_find_photos_sorts_and_leaves_out_what_is_hidden_or_no_picture(tmp_path: Path) -> None:
    wanted = ["a/2.JPG", "a/10.jpeg", "b.png", "b/1.tif"]
    unwanted = ["notes.txt", ".b.123.png", "._a.jpg", ".cache/x.jpg", "a/Thumbs.db"]
    for name in wanted + unwanted:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert find_photos(tmp_path) == sorted(tmp_path / name for name in wanted)
    assert find_photos(tmp_path / "b.png") == [tmp_path / "b.png"]
    hidden = tmp_path / ".cache"
    assert find_photos(hidden) == [hidden / "x.jpg"]  # asked for by name
    with pytest.raises(PhotoError, match="no such file or folder"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(PhotoError, match="holds no pictures"):
        find_photos(tmp_path / "folder.jpg")


def test_a_bad_file_among_many_comes_out_in_its_place(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(150)]
    for number, path in enumerate(paths):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
    paths[70].write_bytes(b"")
    photos = list(read_photos(iter(paths), (4, 6), workers=2))
    assert photos[70] == Failure(paths[70], f"{paths[70]}: the file is empty")
    good = {number: photo for number, photo in enumerate(photos) if not isinstance(photo, Failure)}
    assert {number: int(photo[0, 0, 0]) for number, photo in good.items()} == {n: n for n in range(150) if n != 70}
    assert all(photo.shape == (3, 4, 6) for photo in good.values())


def test_a_stack_needs_all_of_its_photos(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
    stack = read_stack(paths, (4, 6))
    assert stack.shape == (9, 3, 4, 6)
    assert stack[:, 0, 0, 0].tolist() == list(range(9))
    for path in paths[1:8]:
        path.write_bytes(b"")
    with pytest.raises(
        PhotoError, match=r"7 of 9 photos cannot be read: .*1.png: the file is empty; .*5.png"
    ) as caught:
        read_stack(paths, (4, 6))
    assert "6.png" not in str(caught.value)
    assert read_stack([], (4, 6)).shape == (0, 3, 4, 6)


# Part maps, and writing.


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_map_survives_the_disk(tmp_path: Path, height: int, width: int, seed: int) -> None:
    part_map = torch.randint(0, 5, (height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    write_part_map(tmp_path / "deep/er/a.png", part_map)
    assert torch.equal(read_part_map(tmp_path / "deep/er/a.png"), part_map)


def test_a_part_map_on_disk_shows_the_parts_colours(tmp_path: Path) -> None:
    write_part_map(tmp_path / "a.png", torch.arange(5, dtype=torch.uint8)[None])
    assert pixels(tmp_path / "a.png") == [[(0, 0, 0), *(part.colour for part in PARTS)]]


def test_a_part_map_is_resized_without_new_labels(tmp_path: Path) -> None:
    part_map = torch.tensor([[0, 4], [1, 3]], dtype=torch.uint8)
    write_part_map(tmp_path / "a.png", part_map)
    Image.fromarray(part_map.numpy()).save(tmp_path / "grey.png")
    for name in ("a.png", "grey.png"):
        larger = read_part_map(tmp_path / name, (6, 4))
        assert torch.equal(larger, part_map.repeat_interleave(3, 0).repeat_interleave(2, 1))


def test_grey_files_are_part_maps_too_and_colour_pictures_are_not(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 14, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert read_part_map(tmp_path / "grey.png").tolist() == [[0, 14, 255]]
    noise().save(tmp_path / "colour.png")
    with pytest.raises(PhotoError, match=r"colour.png: a part map must be a palette or grey PNG, not RGB"):
        read_part_map(tmp_path / "colour.png")
    (tmp_path / "deep.png").write_bytes(png(1, 1, 16, 0, bytes(3)))
    with pytest.raises(PhotoError, match=r"deep.png: a part map must be a palette or grey PNG, not I;16"):
        read_part_map(tmp_path / "deep.png")
    with pytest.raises(PhotoError, match=r"none.png: no such file"):
        read_part_map(tmp_path / "none.png")


def test_nothing_half_written_is_left_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_picture(path, noise())
    before = path.read_bytes()

    def half(image: Image.Image, target: Path, **options: object) -> None:
        Path(target).write_bytes(before[:50])
        raise OSError("disk is full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk is full"):
        write_picture(path, noise(8, 8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_replaces_the_older_file_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.png"
    write_picture(path, noise(8, 8))
    write_picture(path, noise(4, 4))
    assert read_size(path) == (4, 4)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="unknown file extension"):
        write_picture(tmp_path / "a.unknown", noise())
    assert not list(tmp_path.glob("*unknown*")) + list(tmp_path.glob(".*"))
