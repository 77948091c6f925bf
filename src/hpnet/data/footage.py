"""Footage: the frames of a video file, or of a folder with one picture per frame.

In: a path and the numbers of the frames that are wanted. Out: these frames, one at a time and in their order, and the
people cut out of them, so that hours of footage need the memory of one frame. Frames count from 1, as in MOTChallenge.
A frame that cannot be had comes out as a `Gap`; the rest goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from hpnet.data.photos import PHOTO_SUFFIXES, PhotoError, read_photo

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

FRAMES_FOLDER: Final = "img1"  # where MOTChallenge's sequences keep their frames
_INFO: Final = "seqinfo.ini"
_QUARTER_TURN: Final = 90
_ADDRESS: Final = re.compile(r"(?P<file>.+?)#(?:frame=(?P<frame>[0-9]+)&)?xywh=(?P<xywh>[0-9]+,[0-9]+,[0-9]+,[0-9]+)")


class FootageError(ValueError):
    """Footage that cannot be used; the text names the file and says what is wrong."""


class Rectangle(NamedTuple):
    """Part of a frame in whole pixels; the first pixel's corner is (0, 0)."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture of footage.

    Attributes:
        number: counted from 1.
        seconds: since frame 1; None if nobody knows how fast the frames follow each other.
        picture: RGB.
        address: where it lies: a file, or a video with its `#frame=`.
    """

    number: int
    seconds: float | None
    picture: Image.Image
    address: str

    def clipped(self, left: float, top: float, width: float, height: float) -> Rectangle | None:
        """The part of a box that lies in the frame, rounded to whole pixels; None if none does."""
        x, y = max(0, round(left)), max(0, round(top))
        right, bottom = min(self.picture.width, round(left + width)), min(self.picture.height, round(top + height))
        return Rectangle(x, y, right - x, bottom - y) if right > x and bottom > y else None

    def cut(self, box: Rectangle, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
        """What a box shows, resized to (height, width) as `read_photo` does."""
        right, bottom = box.left + box.width, box.top + box.height
        crop = self.picture.crop((box.left, box.top, right, bottom))
        resized = crop.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def address_of(self, box: Rectangle) -> str:
        """The box as a URI in the style of media fragments: `video.mp4#frame=123&xywh=160,120,40,100`."""
        joint = "&" if "#frame=" in self.address else "#"
        return f"{self.address}{joint}xywh={box.left},{box.top},{box.width},{box.height}"


@dataclass(frozen=True)
class Gap:
    """A frame that cannot be had, and why (one line that names the file)."""

    number: int
    reason: str


@dataclass(frozen=True)
class FrameFolder:
    """A folder with one picture per frame.

    Attributes:
        path: the folder.
        fps: frames per second; None if it is not known.
        pictures: their files by frame number.
    """

    path: Path
    fps: float | None
    pictures: dict[int, Path]

    def frames(self, wanted: Collection[int]) -> Iterator[Frame | Gap]:
        """The frames of these numbers in their order, one for each: a `Gap` stands for one that cannot be had."""
        for number in sorted(set(wanted)):
            if number not in self.pictures:
                yield Gap(number, f"{self.path}: has no frame {number}")
                continue
            path = self.pictures[number]
            try:
                photo = read_photo(path)
            except PhotoError as error:
                yield Gap(number, str(error))
                continue
            seconds = None if self.fps is None else (number - 1) / self.fps
            yield Frame(number, seconds, Image.fromarray(photo.permute(1, 2, 0).numpy()), str(path.resolve()))


@dataclass(frozen=True)
class Video:
    """A video file, decoded by PyAV.

    Attributes:
        path: the file.
        fps: frames per second; None if it is not known.
        given: whether the user gave the rate, which then goes before the file's own times.
    """

    path: Path
    fps: float | None
    given: bool

    def frames(self, wanted: Collection[int]) -> Iterator[Frame | Gap]:
        """As `FrameFolder.frames`. Everything up to the last frame wanted is decoded, once."""
        waiting = sorted(set(wanted), reverse=True)
        reason = f"{self.path}: has no frame"
        with _opened(self.path) as stream:
            began: float | None = None
            decoded = enumerate(_decoded(stream), start=1)
            while waiting:
                try:
                    number, frame = next(decoded)
                except StopIteration:
                    break
                except _av_error() as error:
                    reason = f"{self.path}: damaged video ({_first_line(error)}), which leaves no frame"
                    break
                began = frame.time if began is None else began
                if number == waiting[-1]:
                    waiting.pop()
                    yield self._frame(number, frame, began)
        yield from (Gap(number, f"{reason} {number}") for number in reversed(waiting))

    def frame(self, number: int) -> Frame | Gap:
        """One frame, as `frames` gives it, without decoding all that comes before where the file allows it."""
        with _opened(self.path) as stream:
            packets = [packet for packet in stream.container.demux(stream) if packet.size and not packet.is_discard]
            stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
            if len(stamps) == len(packets) and 1 <= number <= len(stamps):
                stream.container.seek(stamps[number - 1], stream=stream)  # goes to the key frame before
                began = float(stamps[0] * stream.time_base)
                for frame in _decoded(stream):
                    if frame.pts == stamps[number - 1]:
                        return self._frame(number, frame, began)
        return next(self.frames([number]))

    def _frame(self, number: int, frame: VideoFrame, began: float | None) -> Frame:
        pixels = np.asarray(frame.to_ndarray(format="rgb24"))
        # Telephones film sideways and say so; trackers see the frames upright, as players show them.
        upright = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / _QUARTER_TURN)))
        by_rate = None if self.fps is None else (number - 1) / self.fps
        by_stamp = None if began is None or frame.time is None else frame.time - began
        seconds = by_rate if self.given or by_stamp is None else by_stamp
        return Frame(number, seconds, Image.fromarray(upright), f"{self.path.resolve()}#frame={number}")


Footage = FrameFolder | Video


def open_footage(source: Path, fps: float | None = None) -> Footage:
    """Open a video file, a folder of frames, or a sequence of MOTChallenge (a folder that holds `img1`).

    A frame's number is the last number in its picture's name: `000001.jpg`, `frame_12.png`. Where the names count from
    0, the picture 0 is frame 1. The rate stands in a sequence's `seqinfo.ini`, or in the video.

    Args:
        source: the file or folder.
        fps: frames per second, if they are to be others than the source says.

    Raises:
        FootageError: no such thing, no frames in it, names that tell no order, or PyAV is not installed.
    """
    if fps is not None and not (fps > 0 and isfinite(fps)):
        raise FootageError(f"fps must be above 0, not {fps}")
    if source.is_dir():
        info = _sequence_info(source)
        folder = source / info.get("imdir", FRAMES_FOLDER)
        if not folder.resolve().is_relative_to(source.resolve()):
            raise FootageError(f"{source / _INFO}: imDir {info['imdir']!r} lies outside the sequence")
        folder = folder if folder.is_dir() else source
        return FrameFolder(folder, fps if fps is not None else _rate(source, info), _numbered(folder))
    if not source.is_file():
        raise FootageError(f"{source}: no such file or folder")
    with _opened(source) as stream:
        rate = fps or stream.average_rate or stream.guessed_rate
        return Video(source, float(rate) if rate else None, given=fps is not None)


def read_view(address: Path | str, size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 H W"]:
    """Read what an address of `Frame.address_of` names, or a whole photo.

    Args:
        address: a picture file, or a file with `#xywh=`, `#frame=&xywh=`.
        size: (height, width) to resize to; None keeps the size.

    Raises:
        PhotoError: it cannot be had; whatever is wrong with file, frame or place.
    """
    named = _ADDRESS.fullmatch(str(address))
    if named is None or Path(address).is_file():
        return read_photo(address, size)
    place = Rectangle(*(int(value) for value in named["xywh"].split(",")))
    try:
        frame = _frame_of(Path(named["file"]), named["frame"])
    except FootageError as error:
        raise PhotoError(str(error)) from error
    if isinstance(frame, Gap):
        raise PhotoError(frame.reason)
    if frame.clipped(*map(float, place)) != place:
        raise PhotoError(f"{address}: lies beyond the picture's {frame.picture.width} x {frame.picture.height} pixels")
    return frame.cut(place, size or (place.height, place.width))


def _frame_of(file: Path, number: str | None) -> Frame | Gap:
    if number is None:
        return Frame(1, None, Image.fromarray(read_photo(file).permute(1, 2, 0).numpy()), str(file))
    footage = open_footage(file)
    if not isinstance(footage, Video):
        raise FootageError(f"{file}: a folder, not a video")
    return footage.frame(int(number))


def _numbered(folder: Path) -> dict[int, Path]:
    names = (path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES and path.name[0] != ".")
    found = sorted(names)
    if not found:
        raise FootageError(f"{folder}: holds no frames ({' '.join(PHOTO_SUFFIXES)})")
    pictures: dict[int, Path] = {}
    for path in found:
        digits = re.findall(r"[0-9]+", path.stem)
        if not digits:
            raise FootageError(f"{path}: its name holds no frame number")
        if (number := int(digits[-1])) in pictures:
            raise FootageError(f"{folder}: {pictures[number].name} and {path.name} are both frame {number}")
        pictures[number] = path
    return {number + 1: path for number, path in pictures.items()} if 0 in pictures else pictures


def _sequence_info(folder: Path) -> dict[str, str]:
    """What `seqinfo.ini` says, in the sequence's folder or above its frames; nothing if there is none."""
    for place in (folder / _INFO, folder.absolute().parent / _INFO):
        if place.is_file():
            ini = ConfigParser(interpolation=None)
            try:
                ini.read_string(place.read_text(encoding="utf-8-sig"))
            except (IniError, UnicodeDecodeError) as error:
                raise FootageError(f"{place}: damaged ({_first_line(error)})") from error
            return dict(ini["Sequence"]) if "Sequence" in ini else {}
    return {}


def _rate(source: Path, info: dict[str, str]) -> float | None:
    if "framerate" not in info:
        return None
    try:
        rate = float(info["framerate"])
    except ValueError:
        rate = 0.0
    if not (rate > 0 and isfinite(rate)):
        raise FootageError(f"{source}: {_INFO} says frameRate={info['framerate']}; give --fps")
    return rate


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The first video stream of a file."""
    error_kind = _av_error()
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FootageError(f"{path}: holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream
    except error_kind as error:
        raise FootageError(f"{path}: not a video that can be read ({_first_line(error)})") from error


def _decoded(stream: Any) -> Iterable[VideoFrame]:
    frames: Iterable[VideoFrame] = stream.container.decode(stream)
    return frames


def _av_error() -> type[Exception]:
    try:
        from av.error import FFmpegError
    except ImportError as error:
        raise FootageError("video files need PyAV: pip install 'hpnet[video]'; or give a folder of frames") from error
    kind: type[Exception] = FFmpegError
    return kind


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
