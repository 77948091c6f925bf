from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import FILES, picture, write, write_whole

from hpnet.data.doctor import doctor, examine
from hpnet.data.reid import DATA_SETS, DataSetError, Split


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A drawn Market-1501 beside published counts that it meets."""
    splits = {
        "train": Split("bounding_box_train", 2, 3),
        "query": Split("query", 2, 2),
        "gallery": Split("bounding_box_test", 1, 2, junk=2, distractors=1),
    }
    monkeypatch.setitem(DATA_SETS, "market1501", replace(DATA_SETS["market1501"], splits=splits))
    return write(tmp_path / "market", FILES["market1501"])


@pytest.mark.parametrize("name", ["partial_reid", "partial_ilids18", "partial_ilids19", "occluded_reid"])
def test_a_set_of_the_published_size_is_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_whole(name, tmp_path)
    assert doctor(tmp_path) == 0
    said = capsys.readouterr().out
    assert DATA_SETS[name].title in said
    assert "not whole" not in said


def test_an_optional_folder_may_be_absent(tmp_path: Path) -> None:
    root = write_whole("partial_reid", tmp_path / "Partial-REID_Dataset")
    (root / "partial_body_images").rename(tmp_path / "away")
    report = examine(root, read=False)
    assert report.whole
    assert [split.found for split in report.splits] == [True, False, True]


def test_junk_and_distractors_are_counted_apart(market: Path) -> None:
    report = examine(market)
    assert report.whole
    gallery = report.splits[2]
    assert (gallery.files, gallery.images, gallery.identities) == (4, 2, 1)
    assert (gallery.junk, gallery.distractors, gallery.cameras) == (2, 1, 4)
    assert report.data_set == "market1501"


def test_what_is_missing_and_too_many_is_counted(market: Path) -> None:
    (market / "bounding_box_train/0007_c3s3_077419_03.jpg").unlink()
    (market / "bounding_box_test/0000_c1s1_000000_00.jpg").write_bytes(picture())
    (market / "bounding_box_test/-1_c1s1_000401_03.jpg").unlink()
    assert examine(market).problems == [
        "train: 1 identities missing",
        "train: 1 images missing",
        "gallery: 1 images too many",
        "gallery: 1 junk images missing",
        "gallery: 1 distractors too many",
    ]


def test_a_missing_folder_is_named(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (market / "query").iterdir():
        path.unlink()
    (market / "query").rmdir()
    assert examine(market).problems == ["query: folder query is missing"]
    assert doctor(market) == 1
    assert "query: folder query is missing" in capsys.readouterr().out


def test_unreadable_and_surplus_files_are_named(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = market / "query/0001_c1s1_001051_00.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    for number in range(12):
        (market / f"bounding_box_train/note {number:02d}.txt").write_text("!")

    assert doctor(market) == 1
    said = capsys.readouterr().out
    assert f"{damaged}: damaged picture" in said
    assert "query: 1 unreadable" in said
    assert "train: 12 surplus by name" in said
    assert "note 09.txt" in said
    assert "note 10.txt" not in said
    assert "and 2 more" in said

    assert doctor(market, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    train, query, gallery = report["splits"]
    assert not report["whole"]
    assert len(train["surplus"]) == 12
    assert [failure["path"] for failure in query["unreadable"]] == [str(damaged)]
    assert gallery["published"] == {"identities": 1, "images": 2, "junk": 2, "distractors": 1}
    assert (gallery["files"], gallery["images"], gallery["junk"]) == (4, 2, 2)


def test_without_reading_damage_goes_unseen_and_the_report_says_so(
    market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (market / "query/0001_c1s1_001051_00.jpg").write_bytes(b"")
    assert doctor(market, read=False) == 0
    assert "counted, not decoded" in capsys.readouterr().out


def test_drawn_people_are_not_measured_by_published_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, FILES["market1501"])
    assert doctor(tmp_path) == 1
    (tmp_path / "part_maps").mkdir()
    (tmp_path / "visibility.csv").touch()
    capsys.readouterr()
    assert doctor(tmp_path) == 0
    said = capsys.readouterr().out
    assert "drawn people in Market-1501's layout" in said
    assert "1 / 2" in said
    (tmp_path / "query/0001_c1s1_001051_00.jpg").write_bytes(b"")
    assert examine(tmp_path).problems == ["query: 1 unreadable"]


def test_an_own_folder_is_counted_with_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"in [brackets]": ["a.jpg", "b.jpg"]})
    (tmp_path / "c.jpg").write_bytes(picture(size=(30, 70)))
    report = examine(tmp_path)
    assert report.data_set is None
    assert report.whole
    assert report.sizes == (((16, 8), 2), ((70, 30), 1))
    assert doctor(tmp_path) == 0
    said = capsys.readouterr().out
    assert "16x8 to 70x30, most often 16x8 (2 of 3 photos)" in " ".join(said.split())

    broken = tmp_path / "in [brackets]/d.jpg"
    broken.write_bytes(picture(size=(64, 128))[:-40])
    assert examine(tmp_path, read=False).whole  # damage behind the header
    assert doctor(tmp_path) == 1
    assert str(broken) in capsys.readouterr().out
    broken.write_bytes(b"")
    assert not examine(tmp_path, read=False).whole


def test_a_table_is_counted_and_its_bad_rows_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {".": ["a.jpg", "b.jpg", "c.jpg"]})
    table = tmp_path / "people.csv"
    table.write_text("path,identity,camera\na.jpg,0,door\nb.jpg,anna,\nc.jpg,,2\n")
    [split] = examine(table).splits
    # In a user's own table 0 is a person like others.
    assert (split.files, split.identities, split.cameras, split.distractors) == (3, 2, 2, 0)
    assert doctor(table) == 0

    table.write_text("path\na.jpg\nz.jpg\n")
    capsys.readouterr()
    assert doctor(table) == 1
    assert f"{table}, line 3: {tmp_path / 'z.jpg'}: no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "root", "said"),
    [
        ([], "nowhere", "nowhere: no such folder or table"),
        ([], ".", "no known data set here"),
        (["Partial_iLIDS/Probe/1.jpg", "PartialILIDS/Probe/0001.jpg"], ".", "holds 2 data sets"),
    ],
)
def test_no_data_set_is_an_error_that_says_what_was_sought(
    files: list[str], root: str, said: str, tmp_path: Path
) -> None:
    write(tmp_path, {".": files})
    with pytest.raises(DataSetError, match=said):
        doctor(tmp_path / root)


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("path\n")
    with pytest.raises(DataSetError, match="no rows"):
        doctor(tmp_path / "people.csv")


@pytest.mark.real_data
def test_market1501_is_whole(market1501_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(market1501_root, read=False, json=True) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert [split["files"] for split in splits] == [12_936, 3_368, 19_732]
    assert [split["identities"] for split in splits] == [751, 750, 750]
    assert (splits[2]["junk"], splits[2]["distractors"]) == (3_819, 2_798)
