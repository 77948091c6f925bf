"""add, end to end: photos, tables and footage become people in a gallery, and those who walk behind walls are whole."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hpnet import ingest, weights
from hpnet.data.footage import FootageError
from hpnet.data.photos import PhotoError, read_photo
from hpnet.data.synthetic import draw
from hpnet.data.tracks import TrackError
from hpnet.embed import Embedder
from hpnet.gallery import Gallery, GalleryError, Match
from hpnet.ingest import add
from hpnet.parts import PartFeatures
from hpnet.tracklets import template
from test_embed import model_of_parts

CROP = (64, 32)
FRAME = (80, 160)
FRAMES = 10
WALK = {1: (0, 12), 2: (124, -9)}  # track: first place, pixels a frame
WALL, SIGN = (40, 60), (28, 92)  # from y down and x = 50; up to y and x = 92
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def as_image(photo: Tensor) -> Image.Image:
    return Image.fromarray(photo.permute(1, 2, 0).numpy())


def street(number: int) -> Image.Image:
    """Two people cross; a wall hides whatever is low behind it, a sign whatever is high."""
    frame = np.full((*FRAME, 3), 120, np.uint8)
    for person, (x, speed) in WALK.items():
        left = x + speed * (number - 1)
        frame[8 : 8 + CROP[0], left : left + CROP[1]] = np.array(as_image(draw(person, 1, number, size=CROP).photo))
    frame[WALL[0] :, WALL[1] : WALL[1] + 40] = (90, 60, 50)
    frame[: SIGN[0], SIGN[1] : SIGN[1] + 30] = (20, 90, 30)
    return Image.fromarray(frame)


def box_lines() -> list[str]:
    places = [(f, t, x + v * (f - 1)) for f in range(1, FRAMES + 1) for t, (x, v) in WALK.items()]
    return [f"{frame},{track},{left},8,{CROP[1]},{CROP[0]},1,-1,-1,-1" for frame, track, left in places]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with a table, a sequence of frames with boxes, a video of the same, and weights that see some parts."""
    folder = tmp_path_factory.mktemp("world")
    weights.save(model_of_parts(), folder / "w.safetensors")
    rows = []
    for identity in (1, 2, 3):
        for camera in (1, 2):
            path = folder / "photos" / f"{identity}_{camera}.png"
            path.parent.mkdir(exist_ok=True)
            as_image(draw(identity, camera, 0, size=CROP).photo).save(path)
            when = NOON + timedelta(hours=identity)
            rows.append({"path": f"photos/{path.name}", "identity": identity, "time": when.isoformat()})
            rows[-1] |= {"camera": camera if camera == 1 else "", "floor": "first" if identity == 2 else ""}
    with (folder / "people.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "identity", "camera", "time", "floor"])
        table.writeheader()
        table.writerows(rows)
    (folder / "sequence" / "img1").mkdir(parents=True)
    for number in range(1, FRAMES + 1):
        street(number).save(folder / "sequence" / "img1" / f"{number:06d}.png")
    (folder / "sequence" / "seqinfo.ini").write_text("[Sequence]\nimDir=img1\nframeRate=5\n")
    (folder / "boxes.txt").write_text("\n".join(box_lines()) + "\n")
    return folder


@pytest.fixture(scope="module")
def embedder(world: Path) -> Embedder:
    return Embedder(world / "w.safetensors", device="cpu")


@pytest.fixture
def put(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run add into a fresh gallery; gives back the exit code, the summary, what was remarked, and the gallery."""

    def run(source: Path | str, gallery: Path = tmp_path / "g", **options: Any) -> Any:
        source = world / source
        code = add(source, gallery=gallery, weights=world / "w.safetensors", device="cpu", json=True, **options)
        printed = capsys.readouterr()
        return code, json.loads(printed.out), " ".join(printed.err.split()), Gallery.open(gallery)

    return run


def crops(embedder: Embedder, track: int, frames: Sequence[int]) -> PartFeatures:
    """The views of a track, embedded straight from the drawing."""
    x, speed = WALK[track]
    lefts = [x + speed * (number - 1) for number in frames]
    cut = [street(n).crop((left, 8, left + CROP[1], 8 + CROP[0])) for n, left in zip(frames, lefts, strict=True)]
    return embedder(torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in cut]))


def everybody(gallery: Gallery) -> list[Match]:
    """All people of a gallery, in the order of their ids."""
    anybody = gallery.fetch([0])
    return sorted(gallery.search(anybody, k=10_000, visibility="ignore")[0], key=lambda match: match.id)


def assert_agree(stored: PartFeatures, expected: PartFeatures) -> None:
    assert torch.equal(stored.visibility, expected.visibility)
    shown = expected.visibility
    torch.testing.assert_close(stored.features[shown], expected.features[shown], rtol=0, atol=2e-3)  # float16 on disk


# --- photos and tables


def test_a_table_tells_who_when_and_which_camera(put: Callable[..., Any]) -> None:
    code, summary, _, gallery = put("people.csv", camera="7")
    assert code == 0
    assert summary["added"] == summary["people"] == 6
    found = {Path(match.path).name: (match.identity, match.camera, match.time) for match in everybody(gallery)}
    assert found == {
        f"{i}_{c}.png": (i, 1 if c == 1 else 7, NOON + timedelta(hours=i)) for i in (1, 2, 3) for c in (1, 2)
    }


def test_further_columns_of_a_table_are_attributes(put: Callable[..., Any]) -> None:
    *_, gallery = put("people.csv")
    found = gallery.search(gallery.fetch([0]), visibility="ignore", filter="floor = 'first'")[0]
    assert {match.identity for match in found} == {2}


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("Shop Name", ["a", "b"], "'Shop Name' must be small"),
        ("distance", [1, 2], "taken"),
        ("floor", [1, "b"], "mixes"),
        ("identity", [1, "b"], r"people\.csv: identity: mixes"),
    ],
)
def test_columns_that_a_gallery_cannot_take_are_refused_before_anything_is_made(
    put: Callable[..., Any], world: Path, tmp_path: Path, column: str, values: list[Any], words: str
) -> None:
    photos = [f"{world}/photos/{n}_1.png,{value}" for n, value in enumerate(values, start=1)]
    (tmp_path / "people.csv").write_text("\n".join([f"path,{column}", *photos]))
    with pytest.raises(GalleryError, match=words):
        put(tmp_path / "people.csv")
    assert not (tmp_path / "g").exists()


def test_an_empty_folder_becomes_a_gallery(put: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    assert put("people.csv")[0] == 0
    assert put("people.csv")[3].count() == 12, "and is opened the next time"


def test_another_writer_may_make_the_gallery_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Gallery.create

    def late(path: Path, weights: str) -> Gallery:
        create(path, weights)  # the other one's
        return create(path, weights)

    monkeypatch.setattr(Gallery, "create", late)
    assert ingest._opened(tmp_path / "g", "weights").count() == 0


def test_a_folder_and_a_single_photo_go_in_under_their_full_paths(put: Callable[..., Any], world: Path) -> None:
    put("photos/1_1.png")
    code, summary, _, gallery = put("photos", camera="gate")
    assert (code, summary["added"], summary["people"]) == (0, 6, 7)
    people = everybody(gallery)
    assert [match.camera for match in people] == [None] + ["gate"] * 6
    assert people[0].path == people[1].path == str((world / "photos" / "1_1.png").resolve())


def test_bad_photos_are_named_and_skipped(put: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "photos", tmp_path / "crops")
    (tmp_path / "crops" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    code, summary, remarks, gallery = put(tmp_path / "crops")
    assert code == 1
    assert (summary["added"], summary["skipped"], len(gallery)) == (6, 1, 6)
    assert "torn.jpg" in remarks


# --- footage


def test_a_track_becomes_one_template_of_all_its_views(
    put: Callable[..., Any], world: Path, embedder: Embedder
) -> None:
    code, summary, _, gallery = put("sequence", boxes=world / "boxes.txt", camera="3", start=NOON.isoformat())
    assert (code, summary["added"], summary["skipped"], summary["left_out"]) == (0, 2, 0, {})
    frames = range(1, FRAMES + 1)
    for number, track in enumerate(WALK):
        assert_agree(gallery.fetch([number]), template(crops(embedder, track, frames)))
    for match in everybody(gallery):
        assert match.camera == 3
        assert match.time == NOON + timedelta(seconds=(FRAMES - 1) / 5)
        assert match.identity is None


def test_who_walked_behind_a_wall_is_found_by_what_other_views_showed(
    put: Callable[..., Any], world: Path, embedder: Embedder
) -> None:
    *_, gallery = put("sequence", boxes=world / "boxes.txt")
    *_, single = put("sequence", boxes=world / "boxes.txt", gallery=gallery.path.with_name("single"), tracklets=False)
    assert len(single) == 2 * FRAMES
    for number, track in enumerate(WALK):
        views = crops(embedder, track, range(1, FRAMES + 1))
        made = gallery.fetch([number])
        poorest = views.visibility.sum(1).argmin()
        assert int(made.visibility.sum()) > int(views.visibility[poorest].sum())
        # Asked by every view of a track: the template of that track answers, by all that the view shows.
        for answers, shown in zip(gallery.search(views, k=2), views.visibility.tolist(), strict=True):
            assert (answers[0].id if answers else number) == number
            assert sum(shown) == (len(answers[0].parts) if answers else 0)


def test_a_template_tells_its_track_frames_and_number_of_views(
    put: Callable[..., Any], world: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.txt").write_text("\n".join([*box_lines(), "4,-1,0,8,32,64"]))
    *_, gallery = put("sequence", boxes=tmp_path / "b.txt", step=2)
    anybody = gallery.fetch([0])
    for number, condition in [
        (0, "track IS NULL AND first_frame = 4 AND last_frame = 4 AND views = 1"),
        (1, "track = 1 AND first_frame = 1 AND last_frame = 9 AND views = 5"),
        (2, "track = 2 AND first_frame = 1 AND last_frame = 9 AND views = 5"),
    ]:
        found = gallery.search(anybody, visibility="ignore", filter=condition)[0]
        assert [match.id for match in found] == [number]


def test_the_address_is_that_of_the_best_view(put: Callable[..., Any], world: Path, embedder: Embedder) -> None:
    *_, gallery = put("sequence", boxes=world / "boxes.txt")
    for match, (track, (x, speed)) in zip(everybody(gallery), WALK.items(), strict=True):
        visible = crops(embedder, track, range(1, FRAMES + 1)).visibility.sum(1)
        best = int(visible.argmax()) + 1  # the first of those that show most
        left = x + speed * (best - 1)
        picture = (world / "sequence" / "img1" / f"{best:06d}.png").resolve()
        assert match.path == f"{picture}#xywh={left},8,{CROP[1]},{CROP[0]}"


def test_a_video_gives_the_people_that_its_frames_give(put: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av", reason="video needs PyAV: pip install av")
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = *FRAME, "bgr0"
        for number in range(1, FRAMES + 1):
            container.mux(stream.encode(av.VideoFrame.from_image(street(number))))
        container.mux(stream.encode(None))
    *_, frames = put("sequence", boxes=world / "boxes.txt", start=NOON.isoformat())
    options = {"boxes": world / "boxes.txt", "start": NOON.isoformat()}
    code, _, _, video = put(tmp_path / "v.mkv", gallery=tmp_path / "video", **options)
    assert code == 0
    assert torch.equal(video.fetch([0, 1]).features, frames.fetch([0, 1]).features)
    for mine, theirs in zip(everybody(video), everybody(frames), strict=True):
        assert mine.time == theirs.time
        number = int(Path(theirs.path.partition("#")[0]).stem)
        assert mine.path == f"{(tmp_path / 'v.mkv').resolve()}#frame={number}&{theirs.path.partition('#')[2]}"


def test_long_tracks_are_parted_and_a_step_thins_them(
    put: Callable[..., Any], world: Path, embedder: Embedder, tmp_path: Path
) -> None:
    *_, parted = put("sequence", boxes=world / "boxes.txt", every=1.0, start=NOON.isoformat())
    people = everybody(parted)
    assert [match.time for match in people] == [NOON + timedelta(seconds=s) for s in (0.8, 0.8, 1.8, 1.8)]
    assert_agree(parted.fetch([0]), template(crops(embedder, 1, range(1, 6))))
    assert_agree(parted.fetch([3]), template(crops(embedder, 2, range(6, 11))))
    *_, thin = put("sequence", boxes=world / "boxes.txt", gallery=tmp_path / "thin", step=4)
    assert_agree(thin.fetch([0]), template(crops(embedder, 1, (1, 5, 9))))


def test_boxes_without_a_track_stay_by_themselves(
    put: Callable[..., Any], world: Path, embedder: Embedder, tmp_path: Path
) -> None:
    untracked = [f"{line.split(',')[0]},-1,{line.split(',', 2)[2]}" for line in box_lines()]
    (tmp_path / "det.txt").write_text("\n".join(untracked))
    *_, gallery = put("sequence", boxes=tmp_path / "det.txt")
    assert len(gallery) == 2 * FRAMES
    assert_agree(gallery.fetch([2 * n for n in range(FRAMES)]), crops(embedder, 1, range(1, FRAMES + 1)))


def test_boxes_beyond_the_picture_are_clipped_and_small_ones_left_out(
    put: Callable[..., Any], world: Path, tmp_path: Path
) -> None:
    lines = ["1,1,-10,-20,30,70,1", "1,2,0,0,30,31,1", "1,3,155,0,40,70,1", "1,4,500,500,40,80,1", "1,5,9,9,20,40,0"]
    (tmp_path / "b.txt").write_text("\n".join(lines))
    code, summary, remarks, gallery = put("sequence", boxes=tmp_path / "b.txt")
    assert code == 0
    assert [match.path.partition("#")[2] for match in everybody(gallery)] == ["xywh=0,0,20,50"]
    assert summary["left_out"] == {
        "boxes marked as not to be considered": 1,
        "boxes less than 32 x 8 pixels of the picture (--smallest)": 3,
    }
    assert "left out: 3 boxes less than 32 x 8 pixels" in remarks
    *_, gallery = put("sequence", boxes=tmp_path / "b.txt", gallery=tmp_path / "small", smallest=20)
    assert len(gallery) == 3


def test_bad_lines_and_missing_frames_are_named_and_the_rest_goes_in(
    put: Callable[..., Any], world: Path, embedder: Embedder, tmp_path: Path
) -> None:
    shutil.copytree(world / "sequence", tmp_path / "sequence")
    (tmp_path / "sequence" / "img1" / "000004.png").write_bytes(b"torn")
    (tmp_path / "sequence" / "img1" / f"{FRAMES:06d}.png").unlink()
    (tmp_path / "b.txt").write_text("\n".join(["1,1,a,8,32,64", *box_lines(), f"{FRAMES},9,0,0,32,64"]))
    code, summary, remarks, gallery = put(tmp_path / "sequence", boxes=tmp_path / "b.txt")
    assert code == 1
    assert (summary["added"], summary["skipped"]) == (2, 3)
    assert "b.txt, line 1: x is 'a', not a number" in remarks
    assert "000004.png" in remarks
    assert f"has no frame {FRAMES} (3 boxes)" in remarks
    assert_agree(gallery.fetch([0]), template(crops(embedder, 1, (1, 2, 3, 5, 6, 7, 8, 9))))


def test_of_many_faults_some_are_named_and_the_others_counted(
    put: Callable[..., Any], world: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.txt").write_text("\n".join([*box_lines(), *(["nonsense,1,1,1,1,1"] * 50)]))
    code, summary, remarks, _ = put("sequence", boxes=tmp_path / "b.txt")
    assert (code, summary["skipped"]) == (1, 50)
    assert remarks.count("'nonsense'") == 20
    assert "skipped 30 more" in remarks


def test_only_frames_with_people_are_read(
    put: Callable[..., Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def watched(path: Path) -> Tensor:
        read.append(path)
        return read_photo(path)

    monkeypatch.setattr("hpnet.data.footage.read_photo", watched)
    (tmp_path / "b.txt").write_text("\n".join(line for line in box_lines() if line.split(",")[0] in "37"))
    put("sequence", boxes=tmp_path / "b.txt")
    assert [path.name for path in read] == ["000003.png", "000007.png"]  # each once, in order


# --- stopped and gone on with


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("kind", ["photos", "footage"])
def test_a_run_that_was_stopped_can_be_gone_on_with(
    kind: str,
    reason: type[BaseException],
    put: Callable[..., Any],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = world / ("photos" if kind == "photos" else "sequence")
    options: dict[str, Any] = {"batch_size": 2}
    if kind == "footage":
        options |= {"boxes": world / "boxes.txt", "every": 0.4}
    *_, whole = put(source, gallery=tmp_path / "whole", **options)
    monkeypatch.setattr(ingest, "_PHOTOS_AT_ONCE", 3)
    look, left = Embedder.look, [4 if kind == "footage" else 3]

    def until_stopped(self: Embedder, images: Tensor) -> Any:
        left[0] -= 1
        if not left[0]:
            raise reason
        return look(self, images)

    monkeypatch.setattr(Embedder, "look", until_stopped)
    with pytest.raises(reason):
        put(source, **options)
    said = " ".join(capsys.readouterr().err.split())
    stored = len(Gallery.open(tmp_path / "g"))
    assert 0 < stored < len(whole)
    assert f"stopped: {stored} added, and they stay; to go on, give the same and --skip {stored}" in said
    monkeypatch.setattr(Embedder, "look", look)
    *_, gallery = put(source, skip=stored, **options)
    assert [match.path for match in everybody(gallery)] == [match.path for match in everybody(whole)]
    assert_agree(gallery.fetch(range(len(gallery))), whole.fetch(range(len(whole))))


# --- what cannot be done


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"every": 2.0}, "--every is for footage"),
        ({"start": "2024-05-01"}, "--start is for footage"),
        ({"fps": 5.0}, "--fps is for footage"),
        ({"confidence": 0.5}, "--confidence is for footage"),
        ({"skip": -1}, "skip must be 0 or more"),
        ({"smallest": 0}, "smallest at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], reason: str, world: Path, put: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        put("photos", **options)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"start": "noon"}, "'noon' is no date and time"),
        ({"every": 0.0}, "every must be above 0"),
        ({"step": 0}, "step and longest must be at least 1"),
    ],
)
def test_options_of_footage_that_mean_nothing_are_refused(
    options: dict[str, Any], reason: str, world: Path, put: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        put("sequence", boxes=world / "boxes.txt", **options)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("options", [{"start": "2024-05-01T12:00:00"}, {"every": 1.0}])
def test_times_need_a_rate(options: dict[str, Any], world: Path, put: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(world / "sequence" / "img1", tmp_path / "frames")
    with pytest.raises(ValueError, match="give --fps"):
        put(tmp_path / "frames", boxes=world / "boxes.txt", **options)
    code, *_ = put(tmp_path / "frames", boxes=world / "boxes.txt", fps=5.0, **options)
    assert code == 0


def test_footage_without_boxes_is_no_crowd_of_people(world: Path, put: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"video")
    for source in (tmp_path / "v.mp4", world / "sequence"):
        with pytest.raises(ValueError, match="--boxes FILE"):
            put(source)
    with pytest.raises(PhotoError, match="no such file or folder"):
        put("gone")
    with pytest.raises(TrackError, match="no such file of boxes"):
        put("sequence", boxes=tmp_path / "gone.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FootageError, match="holds no frames"):
        put(tmp_path / "empty", boxes=world / "boxes.txt")
    assert not (tmp_path / "g").exists()
