"""Footage: frames come as they were taken, in order, and each that is missing is named."""

from __future__ import annotations

import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpnet.data.footage import FootageError, Frame, FrameFolder, Gap, Rectangle, Video, open_footage, read_view
from hpnet.data.photos import PhotoError, read_photo

SIZE = (48, 64)  # height, width


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Every frame differs from every other, and is nowhere symmetric."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.NEAREST)


def write_frames(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=1):
        picture(number).save(folder / name)
    return folder


def write_video(path: Path, frames: int, *, rate: int = 5, rotation: int = 0, codec: str = "ffv1") -> Path:
    """A clip: without loss (ffv1, png), or with frames that are made from those before and after (mpeg4)."""
    av: Any = pytest.importorskip("av", reason="video needs PyAV: pip install av")
    kind = {"ffv1": "bgr0", "png": "rgb24", "mpeg4": "yuv420p"}[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *SIZE, kind
        if codec == "mpeg4":
            stream.gop_size, stream.max_b_frames = 5, 2
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(1, frames + 1):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number))))
        container.mux(stream.encode(None))
    return path


def same(frame: Frame | Gap, expected: Image.Image) -> bool:
    assert isinstance(frame, Frame)
    return np.array_equal(np.array(frame.picture), np.array(expected))


# --- folders


@pytest.mark.parametrize(
    "names",
    [
        ("000001.png", "000002.png", "000010.png"),
        ("frame_1.png", "frame_2.png", "frame_10.png"),  # by number, not by name
        ("2024-cam3-1.png", "2024-cam3-2.png", "2024-cam3-10.png"),
        ("000000.png", "000001.png", "000009.png"),  # counted from 0
    ],
)
def test_a_frames_number_stands_in_its_name(names: tuple[str, ...], tmp_path: Path) -> None:
    footage = open_footage(write_frames(tmp_path / "frames", *names))
    frames = list(footage.frames([10, 2, 1]))
    assert [frame.number for frame in frames] == [1, 2, 10]
    assert all(same(frame, picture(number)) for number, frame in enumerate(frames, start=1))
    assert footage.fps is None
    assert frames[0].seconds is None  # type: ignore[union-attr]


def test_a_sequence_of_motchallenge_tells_its_rate_and_folder(tmp_path: Path) -> None:
    write_frames(tmp_path / "img1", "000001.png", "000002.png")
    info = "[Sequence]\nname=MOT17-02\nimDir=img1\nframeRate=25\nseqLength=2\nimWidth=64\nimHeight=48\nimExt=.png\n"
    (tmp_path / "seqinfo.ini").write_text(info)
    for source in (tmp_path, tmp_path / "img1"):
        footage = open_footage(source)
        assert footage.path == tmp_path / "img1"
        assert footage.fps == 25
        assert [frame.seconds for frame in footage.frames([1, 2])] == [0, 0.04]  # type: ignore[union-attr]
    assert open_footage(tmp_path, fps=10.0).fps == 10
    for outside in ("..", str(tmp_path.parent)):
        (tmp_path / "seqinfo.ini").write_text(info.replace("imDir=img1", f"imDir={outside}"))
        with pytest.raises(FootageError, match=r"seqinfo\.ini: imDir .* lies outside the sequence"):
            open_footage(tmp_path)
    (tmp_path / "seqinfo.ini").write_text(info.replace("25", "fast"))
    with pytest.raises(FootageError, match="frameRate=fast; give --fps"):
        open_footage(tmp_path)
    (tmp_path / "seqinfo.ini").write_text("no section")
    with pytest.raises(FootageError, match=r"seqinfo\.ini: damaged"):
        open_footage(tmp_path)


def test_missing_and_damaged_frames_are_gaps_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "f", "1.png", "2.png", "4.png")
    (folder / "2.png").write_bytes(b"torn")
    one, two, three, four = open_footage(folder).frames(range(1, 5))
    assert same(one, picture(1))
    assert isinstance(two, Gap)
    assert "2.png" in two.reason
    assert three == Gap(3, f"{folder}: has no frame 3")
    assert same(four, picture(3))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a.png",), "a.png: its name holds no frame number"),
        (("left_1.png", "right_1.png"), "left_1.png and right_1.png are both frame 1"),
        ((), "holds no frames"),
    ],
)
def test_a_folder_without_an_order_is_refused(names: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    write_frames(tmp_path / "f", *names)
    with pytest.raises(FootageError, match=reason):
        open_footage(tmp_path / "f")


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_of_nothing_is_refused(fps: float, tmp_path: Path) -> None:
    with pytest.raises(FootageError, match="fps must be above 0"):
        open_footage(write_frames(tmp_path / "f", "1.png"), fps=fps)


def test_footage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FootageError, match=r"gone\.mp4: no such file or folder"):
        open_footage(tmp_path / "gone.mp4")


# --- crops


@settings(deadline=None)
@given(*[st.floats(-100, 100) for _ in range(2)], *[st.floats(0.1, 200) for _ in range(2)])
def test_a_clipped_box_lies_in_the_picture(left: float, top: float, width: float, height: float) -> None:
    frame = Frame(1, None, picture(1), "f.png")
    part = frame.clipped(left, top, width, height)
    if part is None:
        inside = min(left + width, SIZE[1]) - max(left, 0), min(top + height, SIZE[0]) - max(top, 0)
        assert min(inside) <= 1  # nothing is lost but by rounding
        return
    assert part.left >= 0
    assert part.top >= 0
    assert 1 <= part.width <= min(width + 1, SIZE[1] - part.left)
    assert 1 <= part.height <= min(height + 1, SIZE[0] - part.top)


def test_a_crop_is_what_a_file_of_it_would_be(tmp_path: Path) -> None:
    frame = Frame(1, None, picture(1), "f.png")
    picture(1).crop((5, 7, 25, 47)).save(tmp_path / "crop.png")
    cut = frame.cut(Rectangle(5, 7, 20, 40), (64, 32))
    assert torch.equal(cut, read_photo(tmp_path / "crop.png", (64, 32)))


def test_an_address_tells_frame_and_place() -> None:
    box = Rectangle(1, 2, 3, 4)
    assert Frame(7, None, picture(1), "v.mp4#frame=7").address_of(box) == "v.mp4#frame=7&xywh=1,2,3,4"
    assert Frame(7, None, picture(1), "000007.png").address_of(box) == "000007.png#xywh=1,2,3,4"


def test_an_address_leads_back_to_the_crop(tmp_path: Path) -> None:
    [frame] = open_footage(write_frames(tmp_path / "f#1", "1.png")).frames([1])
    assert isinstance(frame, Frame)
    box = Rectangle(5, 7, 20, 40)
    assert torch.equal(read_view(frame.address_of(box), (64, 32)), frame.cut(box, (64, 32)))
    assert read_view(Path(frame.address_of(box))).shape == (3, 40, 20)
    assert torch.equal(read_view(tmp_path / "f#1" / "1.png"), read_photo(tmp_path / "f#1" / "1.png"))
    for wrong, reason in [
        (f"{tmp_path}/gone.png#xywh=0,0,9,9", "gone.png: no such file"),
        (frame.address_of(Rectangle(60, 0, 20, 40)), "beyond the picture's 64 x 48 pixels"),
        (f"{tmp_path}/gone.mp4#frame=1&xywh=0,0,9,9", "gone.mp4: no such file"),
        (f"{tmp_path / 'f#1'}#frame=1&xywh=0,0,9,9", "a folder, not a video"),
    ]:
        with pytest.raises(PhotoError, match=reason):
            read_view(wrong)


# --- video


def test_a_video_gives_the_frames_that_are_wanted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 6)
    footage = open_footage(path)
    assert footage.fps == 5
    frames = list(footage.frames({4, 1, 6}))
    assert [frame.number for frame in frames] == [1, 4, 6]
    assert all(same(frame, picture(frame.number)) for frame in frames)
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.6, 1.0])  # type: ignore[union-attr]
    assert frames[1].address == f"{path.resolve()}#frame=4"  # type: ignore[union-attr]
    given = [frame.seconds for frame in open_footage(path, fps=10.0).frames([1, 6])]  # type: ignore[union-attr]
    assert given == pytest.approx([0, 0.5])


@pytest.mark.parametrize("codec", ["ffv1", "mpeg4"])
def test_a_single_frame_of_a_video_is_the_same(codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 12, codec=codec)
    footage = open_footage(path)
    assert isinstance(footage, Video)
    for frame in footage.frames(range(1, 13)):
        assert isinstance(frame, Frame)
        alone = footage.frame(frame.number)
        assert same(alone, frame.picture)
        assert alone.address == frame.address  # type: ignore[union-attr]
        assert alone.seconds == pytest.approx(frame.seconds)  # type: ignore[union-attr]
        box = Rectangle(8, 8, 16, 32)
        assert torch.equal(read_view(frame.address_of(box)), frame.cut(box, (32, 16)))
    assert footage.frame(13) == Gap(13, f"{path}: has no frame 13")
    with pytest.raises(PhotoError, match="has no frame 13"):
        read_view(f"{path}#frame=13&xywh=0,0,9,9")


def test_frames_after_a_videos_end_are_gaps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 3)
    last, *beyond = open_footage(path).frames([3, 4, 9])
    assert same(last, picture(3))
    assert beyond == [Gap(4, f"{path}: has no frame 4"), Gap(9, f"{path}: has no frame 9")]


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_video_filmed_sideways_comes_upright(turn: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mov", 1, rotation=turn, codec="png")
    [frame] = open_footage(path).frames([1])
    assert same(frame, picture(1).rotate(turn, expand=True))


def test_what_is_left_of_a_torn_video_is_used(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.mkv", 8).read_bytes()
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole[: len(whole) // 2])
    frames = list(open_footage(torn).frames(range(1, 9)))
    assert [frame.number for frame in frames] == list(range(1, 9))
    kinds = [type(frame) for frame in frames]
    good = kinds.index(Gap)
    assert 0 < good < 8
    assert set(kinds[good:]) == {Gap}
    assert all(same(frame, picture(frame.number)) for frame in frames[: good - 1])  # the last one may be half there
    assert "torn.mkv" in frames[-1].reason  # type: ignore[union-attr]


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="video needs PyAV: pip install av")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(FootageError, match=r"v\.mp4: not a video that can be read"):
        open_footage(tmp_path / "v.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(800))
    with pytest.raises(FootageError, match=r"sound\.wav: holds no video"):
        open_footage(tmp_path / "sound.wav")


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(b"whatever")
    for name in ("av", "av.error"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FootageError, match=r"pip install 'hpnet\[video\]'"):
        open_footage(tmp_path / "v.mp4")
    # Folders of frames need none of it.
    assert isinstance(open_footage(write_frames(tmp_path / "f", "1.png")), FrameFolder)
