"""Files of boxes: every variant is read for what it says, and every bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpnet.data.tracks import NOT_A_PERSON, NOT_CONSIDERED, UNSURE, Box, Track, TrackError, read_boxes, tracks_of


def written(folder: Path, *lines: str) -> Path:
    path = folder / "boxes.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def box(frame: int, track: int | None, line: int = 1) -> Box:
    return Box(line, frame, track, 10.0, 20.0, 30.0, 60.0)


# --- files


@pytest.mark.parametrize(
    ("line", "track"),
    [
        ("3,7,10,20,30,60", 7),  # the least
        ("3,7,10,20,30,60,1,-1,-1,-1", 7),  # a tracker's result; ground truth of MOT15
        ("3,7,10,20,30,60,1,1,0.86", 7),  # ground truth of MOT16, MOT17, MOT20
        ("3,7,10,20,30,60,0.3", 7),
        ("3,-1,10,20,30,60,-2.4,-1,-1,-1", None),  # a detection; its confidence may be below 0
        ("3,-1,10,20,30,60,0.99", None),  # MOT17's newer detectors
        ("3, 7, 10, 20, 30, 60", 7),
        ("3 7 10 20 30 60 1", 7),
        ("3.0,7.0,1.0e+01,2.0e+01,3.0e+01,6.0e+01", 7),  # as numpy.savetxt writes
        ("3,0,10,20,30,60", 0),  # some trackers count from 0
    ],
)
def test_every_variant_of_a_line_is_read(line: str, track: int | None, tmp_path: Path) -> None:
    read = read_boxes(written(tmp_path, line))
    assert read.boxes == [Box(1, 3, track, 10.0, 20.0, 30.0, 60.0)]
    assert not read.problems
    assert not read.left_out


def test_ground_truth_counts_pedestrians_that_are_to_be_considered(tmp_path: Path) -> None:
    read = read_boxes(
        written(
            tmp_path,
            "1,1,10,20,30,60,1,1,1.0",
            "1,2,10,20,30,60,1,3,1.0",  # a car
            "1,3,10,20,30,60,0,7,1.0",  # a static person
            "1,4,10,20,30,60,0,1,1.0",  # a pedestrian, not to be considered
            "1,5,10,20,30,60,1,1,0.0",  # hidden, and to be considered: what is seen decides the network
        )
    )
    assert [each.track for each in read.boxes] == [1, 5]
    assert read.left_out == {NOT_A_PERSON: 2, NOT_CONSIDERED: 1}
    assert not read.problems


def test_flag_zero_of_the_older_ground_truth_is_not_considered(tmp_path: Path) -> None:
    read = read_boxes(written(tmp_path, "1,1,10,20,30,60,0,-1,-1,-1", "1,2,10,20,30,60,1,-1,-1,-1"))
    assert [each.track for each in read.boxes] == [2]


def test_boxes_below_the_confidence_asked_for_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "1,-1,10,20,30,60,0.4", "1,-1,10,20,30,60,0.5", "1,-1,10,20,30,60,0.9")
    read = read_boxes(path, confidence=0.5)
    assert [each.line for each in read.boxes] == [2, 3]
    assert read.left_out == {UNSURE: 1}
    assert len(read_boxes(path).boxes) == 3


def test_a_first_line_may_name_the_fields_and_lines_may_be_empty(tmp_path: Path) -> None:
    read = read_boxes(written(tmp_path, "frame,id,x,y,w,h", "", "1,1,10,20,30,60"))
    assert [each.line for each in read.boxes] == [3]
    assert not read.problems


def test_boxes_come_in_the_order_of_frames(tmp_path: Path) -> None:
    # MOT16's ground truth is sorted by track.
    read = read_boxes(written(tmp_path, "1,1,1,1,9,9", "2,1,1,1,9,9", "1,2,1,1,9,9"))
    assert [(each.frame, each.line) for each in read.boxes] == [(1, 1), (1, 3), (2, 2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,1,10,20,30", "has 5 fields"),
        ("one,1,10,20,30,60", "frame is 'one', not a number"),
        ("1,1,10,20,30,", "h is '', not a number"),
        ("1,1,nan,20,30,60", "x is nan, not a finite number"),
        ("1.5,1,10,20,30,60", "frame is 1.5, not a whole number"),
        ("1,1.5,10,20,30,60", "id is 1.5, not a whole number"),
        ("0,1,10,20,30,60", "frames count from 1"),
        ("1,1,10,20,0,60", "0 x 60 pixels shows nothing"),
        ("1,1,10,20,30,-60", "30 x -60 pixels shows nothing"),
        ("1,1,10,20,30,60,sure", "confidence is 'sure'"),
        ("1,1,10,20,30,60,1,car,1", "class is 'car'"),
        ("2,9,10,20,30,60", "track 9 stands in frame 2 already, in line 1"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(line: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, "2,9,10,20,30,60", line, "3,9,10,20,30,60")
    read = read_boxes(path)
    assert [each.line for each in read.boxes] == [1, 3]
    [problem] = read.problems
    assert problem.startswith(f"{path}, line 2: ")
    assert reason in problem


def test_a_car_may_bear_a_persons_number(tmp_path: Path) -> None:
    read = read_boxes(written(tmp_path, "1,1,10,20,30,60,1,1,1", "1,1,10,20,30,60,1,3,1"))
    assert len(read.boxes) == 1
    assert not read.problems


def test_a_file_without_a_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackError, match=r"gone\.txt: no such file"):
        read_boxes(tmp_path / "gone.txt")
    with pytest.raises(TrackError, match="it is empty"):
        read_boxes(written(tmp_path, ""))
    with pytest.raises(TrackError, match="2 are of another class"):
        read_boxes(written(tmp_path, "1,1,1,1,9,9,1,3,1", "2,1,1,1,9,9,1,3,1"))
    with pytest.raises(TrackError, match="line 1: has 3 fields"):
        read_boxes(written(tmp_path, "this is, not a, box"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(TrackError, match="not a text file"):
        read_boxes(tmp_path / "binary.txt")


# --- tracks


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.none() | st.integers(0, 4)), min_size=1, max_size=40, unique=True))
def test_tracks_part_the_boxes_and_come_in_the_order_of_their_ends(places: list[tuple[int, int | None]]) -> None:
    boxes = [box(frame, track, line) for line, (frame, track) in enumerate(sorted(places, key=lambda each: each[0]))]
    tracks = tracks_of(boxes)
    assert sorted(each.line for track in tracks for each in track.boxes) == [each.line for each in boxes]
    assert [track.end for track in tracks] == sorted(track.end for track in tracks)
    for track in tracks:
        assert len({each.track for each in track.boxes}) == 1
        assert track.number is not None or len(track.boxes) == 1
        assert [each.frame for each in track.boxes] == sorted(each.frame for each in track.boxes)
    numbers = [track.number for track in tracks if track.number is not None]
    assert len(numbers) == len(set(numbers))


def test_a_long_track_is_parted_from_its_own_first_frame() -> None:
    boxes = [box(frame, 1, frame) for frame in (3, 4, 5, 7, 12)]
    pieces = tracks_of(boxes, longest=3)
    assert [[each.frame for each in piece.boxes] for piece in pieces] == [[3, 4, 5], [7], [12]]


def test_a_step_takes_some_boxes_of_every_track() -> None:
    boxes = [box(frame, track, 10 * frame + track) for frame in range(1, 8) for track in (1, 2)]
    boxes.append(box(8, 3, 99))
    assert [[each.frame for each in track.boxes] for track in tracks_of(boxes, step=3)] == [[1, 4, 7], [1, 4, 7], [8]]


@pytest.mark.parametrize("options", [{"step": 0}, {"longest": 0}])
def test_a_step_or_a_span_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        tracks_of([box(1, 1)], **options)


def test_a_track_ends_with_its_last_box() -> None:
    assert Track((box(1, 4, 5), box(9, 4, 2))).end == (9, 2)
