from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import FILES, NESTED_OCCLUDED_REID, picture, write, write_whole

from hpnet.data.photos import PhotoError
from hpnet.data.reid import (
    DATA_SETS,
    DISTRACTOR,
    JUNK,
    UNLABELLED,
    DataSetError,
    NoDataSetError,
    Person,
    data_hash,
    find_data_set,
    hold_out,
    identity_labels,
    list_split,
    list_table,
    locate,
    named_person,
    read_folder,
    read_split,
    read_table,
)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_split_of_every_data_set_is_read_as_its_names_say(name: str, tmp_path: Path) -> None:
    write(tmp_path, FILES[name])
    for split, row in DATA_SETS[name].splits.items():
        people = read_split(name, tmp_path, split)
        expected = FILES[name][row.folder]
        assert {person.path.name: (person.identity, person.camera) for person in people} == expected
        assert [person.path for person in people] == sorted(person.path for person in people)
        assert all(person.path.is_file() for person in people)


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("depth", ["itself", "named", "key", "twice"])
def test_a_data_set_is_recognised_in_a_folder_or_in_the_one_above(name: str, depth: str, tmp_path: Path) -> None:
    usual = DATA_SETS[name].roots[0]
    below = {"itself": usual, "named": f"x/{usual}", "key": f"x/{name.upper()}", "twice": f"x/{name}/{usual}"}[depth]
    write(tmp_path / below, FILES[name])
    root = tmp_path / below.split("/", maxsplit=1)[0]
    assert find_data_set(root) == name
    assert locate(name, root) == tmp_path / below
    assert read_split(name, root, "query") == read_split(name, tmp_path / below, "query")


def test_a_data_set_inside_another_does_not_hide_it(tmp_path: Path) -> None:
    write(tmp_path, FILES["market1501"])
    write(tmp_path / "Occluded_Duke", FILES["occluded_duke"])
    assert find_data_set(tmp_path) == "market1501"
    assert find_data_set(tmp_path / "Occluded_Duke") == "occluded_duke"


def test_market_and_duke_share_folders_but_not_names(tmp_path: Path) -> None:
    write(tmp_path / "a", FILES["market1501"])
    write(tmp_path / "b", FILES["occluded_duke"])
    assert find_data_set(tmp_path / "a") == "market1501"
    assert find_data_set(tmp_path / "b") == "occluded_duke"
    assert list_split("occluded_duke", tmp_path / "a", "query").people == []


def test_partial_and_occluded_reid_share_folders_and_are_told_apart_without_a_name(tmp_path: Path) -> None:
    # By the published numbers of images.
    assert find_data_set(write(tmp_path / "a", FILES["partial_reid"])) == "partial_reid"
    whole = write_whole("partial_reid", tmp_path / "b")
    (whole / "partial_body_images").rename(tmp_path / "away")
    assert find_data_set(whole) == "partial_reid"
    flat = [f"{identity:03d}_{image:02d}.jpg" for identity in range(1, 201) for image in range(1, 6)]
    occluded = write(tmp_path / "c", {"occluded_body_images": flat, "whole_body_images": flat})
    assert find_data_set(occluded) == "occluded_reid"


def test_a_person_is_known_by_name_in_any_folder() -> None:
    path = Path("elsewhere/person/1/1488_c3s6_023021_00.jpg.jpg")
    assert named_person("market1501", path) == Person(path, 1488, 3)
    with pytest.raises(DataSetError, match=r"tree\.jpg: is not named like 0002_c1s1_000451_03\.jpg"):
        named_person("market1501", Path("0002_c1s1/tree.jpg"))


def test_both_partial_ilids_side_by_side_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "Partial_iLIDS", FILES["partial_ilids18"])
    write(tmp_path / "PartialILIDS", FILES["partial_ilids19"])
    assert [person.identity for person in read_split("partial_ilids18", tmp_path, "query")] == [1, 10, 119]
    assert [person.identity for person in read_split("partial_ilids19", tmp_path, "query")] == [1, 119]
    with pytest.raises(DataSetError, match=r"holds 2 data sets.*Partial_iLIDS"):
        find_data_set(tmp_path)


def test_occluded_reid_is_read_from_its_first_release(tmp_path: Path) -> None:
    write(tmp_path, NESTED_OCCLUDED_REID)
    assert find_data_set(tmp_path) == "occluded_reid"
    people = read_split("occluded_reid", tmp_path, "gallery")
    assert [person.identity for person in people] == [1, 200]
    assert people[0].path == tmp_path / "whole_body_images/001/001_01.tif"


def test_a_file_in_another_identitys_folder_is_no_person(tmp_path: Path) -> None:
    write(tmp_path, NESTED_OCCLUDED_REID)
    stray = tmp_path / "whole_body_images/001/002_01.tif"
    stray.write_bytes(picture(".tif"))
    files = list_split("occluded_reid", tmp_path, "gallery")
    assert files.surplus == [stray]
    assert len(files.people) == 2


def test_surplus_files_are_reported_and_hidden_ones_are_not(tmp_path: Path) -> None:
    query = write(tmp_path, FILES["market1501"]) / "query"
    for name in ("Thumbs.db", ".DS_Store", "._0001_c1s1_001051_00.jpg"):
        (query / name).write_bytes(b"")
    (query / ".cache").mkdir()
    (query / ".cache" / "0009_c1s1_001051_00.jpg").write_bytes(b"")
    assert list_split("market1501", tmp_path, "query").surplus == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_split("market1501", tmp_path, "query")) == 2

    for name in ("notes.txt", "copy of 0001_c1s1_001051_00.jpg", "0001_c1s1_001051_00 (1).jpg"):
        (query / name).write_bytes(b"")
    assert len(list_split("market1501", tmp_path, "query").surplus) == 3
    with pytest.warns(
        UserWarning, match=r"query: 3 files are not named like .* the first is 0001_c1s1_001051_00 \(1\)"
    ):
        people = read_split("market1501", tmp_path, "query")
    assert [person.identity for person in people] == [1, 1488]


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("market", "query", r"unknown data set 'market': choose one of market1501"),
        ("market1501", "test", r"Market-1501 has no split 'test': choose one of train, query, gallery"),
        ("partial_reid", "train", r"no split 'train'"),
        ("market1501", "gallery", r"bounding_box_test: no such folder, Market-1501's gallery images are sought there"),
        ("partial_ilids18", "query", r"none of Partial-iLIDS'18's folders \(Probe, Gallery\).*give the folder"),
        ("occluded_duke", "query", r"query: no file is named like 0001_c2_f0046182.jpg"),
    ],
)
def test_a_wrong_request_is_explained(name: str, split: str, said: str, tmp_path: Path) -> None:
    write(tmp_path, {"query": ["0001_c1s1_001051_00.jpg"]})
    with pytest.raises(DataSetError, match=said) as caught:
        read_split(name, tmp_path, split)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_data_set_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NoDataSetError, match=r"no known data set here.*Market-1501: bounding_box_train, query"):
        find_data_set(tmp_path)
    (tmp_path / "query").mkdir()  # a folder of the right name, but empty
    with pytest.raises(NoDataSetError):
        find_data_set(tmp_path)
    with pytest.raises(DataSetError, match="nowhere: no such folder"):
        find_data_set(tmp_path / "nowhere")


def test_the_table_holds_the_papers_counts() -> None:
    counts = {
        (name, split): (row.identities, row.images)
        for name, data_set in DATA_SETS.items()
        for split, row in data_set.splits.items()
    }
    assert counts == {
        ("market1501", "train"): (751, 12936),
        ("market1501", "query"): (750, 3368),
        ("market1501", "gallery"): (750, 15913),
        ("occluded_duke", "train"): (702, 15618),
        ("occluded_duke", "query"): (519, 2210),
        ("occluded_duke", "gallery"): (1110, 17661),
        ("partial_reid", "query"): (60, 300),
        ("partial_reid", "query_partial"): (60, 300),
        ("partial_reid", "gallery"): (60, 300),
        ("partial_ilids18", "query"): (119, 119),
        ("partial_ilids18", "gallery"): (119, 119),
        ("partial_ilids19", "query"): (107, 238),
        ("partial_ilids19", "gallery"): (109, 238),
        ("occluded_reid", "query"): (200, 1000),
        ("occluded_reid", "gallery"): (200, 1000),
    }


def test_an_own_folder_invents_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"a": ["2.jpg", "0001_c1s1_001051_00.jpg"], "b": ["1.png"]})
    people = read_folder(tmp_path)
    assert [person.path.name for person in people] == ["0001_c1s1_001051_00.jpg", "2.jpg", "1.png"]
    assert {(person.identity, person.camera) for person in people} == {(None, None)}
    with pytest.raises(PhotoError, match="no such file or folder"):
        read_folder(tmp_path / "nowhere")


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    write(tmp_path, {"crops": ["a.jpg", "b.jpg", "c, d.jpg"]})
    return tmp_path


def _table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    table = folder / "people.csv"
    table.write_bytes(text.encode(encoding))
    return table


def test_a_table_is_read_with_numbers_names_and_gaps(crops: Path) -> None:
    text = 'identity,path,camera,mood\r\nanna,crops/b.jpg,3,12:00\r\n-1,crops/a.jpg,,\r\n,"crops/c, d.jpg",door,-.5\r\n'
    people = read_table(_table(crops, text))
    assert people == [
        Person(crops / "crops/a.jpg", -1, None),
        Person(crops / "crops/b.jpg", "anna", 3, None, {"mood": "12:00"}),
        Person(crops / "crops/c, d.jpg", None, "door", None, {"mood": -0.5}),
    ]


def test_numbers_with_leading_zeros_stay_names(crops: Path) -> None:
    table = _table(crops, "path,badge\ncrops/a.jpg,00123\ncrops/b.jpg,-12\n")
    assert [person.attributes for person in read_table(table)] == [{"badge": "00123"}, {"badge": -12}]


def test_a_tables_time_is_seconds_or_a_moment(crops: Path) -> None:
    text = 'path,time\ncrops/a.jpg,12.5\ncrops/b.jpg,2024-05-01T12:00:00Z\n"crops/c, d.jpg", \n'
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert [person.time for person in read_table(_table(crops, text))] == [12.5, noon, None]


def test_a_table_may_have_a_byte_order_mark_spaces_and_absolute_paths(crops: Path) -> None:
    table = _table(crops, f"path, identity\n{crops / 'crops/a.jpg'}, 007\ncrops/b.jpg, ² \n", "utf-8-sig")
    assert [(person.identity, person.camera) for person in read_table(table)] == [(7, None), ("²", None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"people.csv: no column 'path'; the first line names none"),
        ("file,identity\ncrops/a.jpg,1\n", r"people.csv: no column 'path'; the first line names file, identity"),
        ("path\n", r"people.csv: the table has no rows"),
        ("path\ncrops/a.jpg\ncrops/z.jpg\n", r"people.csv, line 3: .*crops/z.jpg: no such file"),
        ("path\ncrops/a.jpg\ncrops\n", r"line 3: .*crops: no such file"),
        ("path\ncrops/a.jpg\n./crops/a.jpg\n", r"line 3: ./crops/a.jpg stands in line 2 already"),
        ("path,identity\n,4\n", r"line 2: the path is empty"),
        ("path,time\ncrops/a.jpg,noon\n", r"line 2: time 'noon' is neither seconds nor a moment"),
        ("path,time\ncrops/a.jpg,20240501\n", r"line 2: time '20240501' may be a date; write it like 2024-05-01"),
        ("path,time\ncrops/a.jpg,inf\n", r"line 2: time 'inf' is neither seconds nor a moment"),
        ("path,identity\ncrops/c, d.jpg,4\n", r"line 2: has more fields .* put quotes"),
        ("path\n" + "\n".join(f"{n}.jpg" for n in range(7)), r"0.jpg: no such.*4.jpg: no such file \(and 2 more\)"),
    ],
)
def test_a_bad_table_is_explained_in_one_line(crops: Path, text: str, said: str) -> None:
    with pytest.raises(DataSetError, match=said) as caught:
        read_table(_table(crops, text))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text_is_explained(crops: Path) -> None:
    for content in (picture(".jpg"), "path\nü.jpg\n".encode("latin-1")):
        (crops / "x.csv").write_bytes(content)
        with pytest.raises(DataSetError, match=r"x.csv: not a CSV in UTF-8"):
            read_table(crops / "x.csv")
    with pytest.raises(DataSetError, match=r"none.csv: no such table"):
        read_table(crops / "none.csv")


def test_good_rows_survive_bad_ones(crops: Path) -> None:
    people, problems = list_table(_table(crops, "path,identity\ncrops/b.jpg,2\nnone.jpg,1\ncrops/a.jpg,1\n"))
    assert [person.identity for person in people] == [1, 2]
    assert len(problems) == 1


@given(st.lists(st.integers(-3, 9) | st.sampled_from(["anna", "bob"]), max_size=30))
def test_labels_are_dense_ordered_and_reversible(identities: list[int | str]) -> None:
    people = [Person(Path(f"{row}.jpg"), identity, None) for row, identity in enumerate(identities)]
    labels, names = identity_labels(people)
    assert labels.dtype == torch.int64
    assert [names[label] for label in labels.tolist()] == identities
    assert sorted(set(labels.tolist())) == list(range(len(names)))
    numbers = [name for name in names if isinstance(name, int)]
    assert names == sorted(numbers) + sorted(set(identities) - set(numbers))


def test_labels_skip_what_they_are_told_to_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, FILES["market1501"])
    gallery = read_split("market1501", tmp_path, "gallery")
    labels, names = identity_labels(gallery, skip=(JUNK, DISTRACTOR))
    assert names == [1]
    assert labels.tolist() == [UNLABELLED, UNLABELLED, UNLABELLED, 0]
    assert identity_labels(gallery)[1] == [-1, 0, 1]


def test_labels_need_identities() -> None:
    with pytest.raises(DataSetError, match=r"b.jpg: its identity is not known"):
        identity_labels([Person(Path("a.jpg"), 1, None), Person(Path("b.jpg"), None, None)])


def test_the_hash_covers_names_sizes_identities_and_cameras_but_not_place_or_order(tmp_path: Path) -> None:
    here, there = (write(tmp_path / place, {"crops": ["a.jpg", "b.jpg"]}) for place in ("here", "there"))

    def people(root: Path, identity: int | str = 1, camera: int | None = None) -> list[Person]:
        return [Person(root / "crops/a.jpg", identity, camera), Person(root / "crops/b.jpg", 2, None)]

    same = data_hash(people(here), here)
    assert len(same) == 64
    assert data_hash(people(there), there) == same
    assert data_hash(people(here)[::-1], here) == same
    assert data_hash(people(here)[:1], here) != same
    assert data_hash(people(here, identity=3), here) != same
    assert data_hash(people(here, identity="1"), here) != same
    assert data_hash(people(here, camera=1), here) != same
    (there / "crops/a.jpg").write_bytes(picture() + b" ")
    assert data_hash(people(there), there) != same
    (here / "crops/a.jpg").rename(here / "crops/c.jpg")
    assert data_hash([Person(here / "crops/c.jpg", 1, None), people(here)[1]], here) != same


@pytest.mark.real_data
def test_market1501_is_read_whole(market1501_root: Path) -> None:
    for root in (market1501_root, market1501_root.parent):
        assert find_data_set(root) == "market1501"
    train, query, gallery = (read_split("market1501", market1501_root, s) for s in ("train", "query", "gallery"))
    assert [len(people) for people in (train, query, gallery)] == [12_936, 3_368, 19_732]
    assert len(identity_labels(train)[1]) == 751
    assert len({person.identity for person in query}) == 750
    assert {person.identity for person in query} == {person.identity for person in gallery} - {JUNK, DISTRACTOR}
    assert {person.camera for person in train} == set(range(1, 7))


# Held-out identities


NAMES = st.sampled_from([JUNK, DISTRACTOR, 1, 2, "anna", "1", None])
CAMERAS = st.sampled_from([None, None, 0, 1, "door"])


def _seen(name: str, identity: int | str | None, camera: int | str | None) -> Person:
    return Person(Path(f"{name}.jpg"), identity, camera)


def test_hold_out_by_hand() -> None:
    people = [
        _seen("a", 1, 1), _seen("b", 7, 1), _seen("c", 7, 1), _seen("d", 7, 2), _seen("e", 9, 1),
        _seen("f", 9, 1), _seen("g", 9, 1), _seen("h", 9, 2),
    ]  # fmt: skip
    query, gallery = hold_out(people, 2)
    assert [each.path.stem for each in query] == ["b", "d", "e", "h"]
    assert [each.path.stem for each in gallery] == ["c", "f", "g"]
    assert [each.path.stem for each in hold_out(people, 1)[0]] == ["e", "h"]


@given(st.lists(st.tuples(NAMES, CAMERAS), max_size=30), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_hold_out_parts_the_last_identities(rows: list[tuple[Any, Any]], count: int) -> None:
    people = [_seen(str(number), identity, camera) for number, (identity, camera) in enumerate(rows)]
    query, gallery = hold_out(people, count)
    known = {each.identity for each in people} - {None}
    chosen = {each.identity for each in query}
    assert len(chosen) == min(count, len(known))
    assert {each.identity for each in gallery} <= chosen
    held = [each for each in people if each.identity in chosen]
    assert sorted([*query, *gallery], key=held.index) == held, "nobody is lost, nobody stands on both sides"
    places = [(each.identity, each.camera) for each in query]
    assert len(places) == len(set(places)) == len({(each.identity, each.camera) for each in held})
    assert all(isinstance(each, int) for each in known - chosen) or all(isinstance(each, str) for each in chosen)
