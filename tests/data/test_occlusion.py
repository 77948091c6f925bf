"""`hpnet occlude` on drawn people: the same pictures each time, and a truth that pixels bear out."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpnet.data.occluders import KINDS, Cover, Donors
from hpnet.data.occlusion import hide, occlude
from hpnet.data.photos import read_part_map, read_photo, write_part_map
from hpnet.data.reid import hold_out, read_split
from hpnet.data.synthetic import SyntheticConfig, write_market1501
from hpnet.data.truth import SEVERITIES, OcclusionError, read_occluded
from hpnet.parts import PARTS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "Market-1501"
    config = SyntheticConfig(
        identities=6, test_identities=6, cameras=2, shots=2, distractors=0, junk=0, size=(64, 32), occluded_train=0.0
    )
    write_market1501(root, config)
    # Whole people as queries, so that there is something to hide; the names are the same.
    for folder in (root, root / "part_maps"):
        shutil.rmtree(folder / "query")
        (folder / "query_whole").rename(folder / "query")
    return root


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("occluded") / "out"
    assert occlude(drawn, out, part_maps=drawn / "part_maps") == 0
    return out


def truth(out: Path) -> list[dict[str, str]]:
    with (out / "truth.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> dict[str, str]:
    paths = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


def copied(drawn: Path, folder: Path) -> Path:
    return Path(shutil.copytree(drawn, folder / "Market-1501"))


# What is written


def test_every_query_comes_once_per_kind_in_a_third_of_each_severity(drawn: Path, made: Path) -> None:
    queries = read_split("market1501", drawn, "query")
    rows = truth(made)
    assert Counter((row["kind"], row["photo"]) for row in rows) == {
        (kind, f"query/{person.path.name}"): 1 for kind in KINDS for person in queries
    }
    assert Counter((row["kind"], row["severity"]) for row in rows) == {
        (kind, level): len(queries) // 3 for kind in KINDS for level in "123"
    }
    by_photo = {kind: [row["severity"] for row in rows if row["kind"] == kind] for kind in KINDS}
    assert by_photo["person"] == sorted(by_photo["person"]), "sorted by picture"
    assert {row["picture"] for row in rows} | {"truth.csv", "manifest.json"} == set(files(made))
    for row in rows:
        assert row["picture"] == f"{row['kind']}/{row['severity']}/{Path(row['photo']).name}"
        assert read_photo(made / row["picture"]).shape == (3, 64, 32)


def test_pictures_are_reread_as_the_people_they_show(drawn: Path, made: Path) -> None:
    queries = {person.path.name: person for person in read_split("market1501", drawn, "query")}
    occluded = read_occluded(made, KINDS)
    assert len(occluded.people) == 3 * len(queries)
    for person in occluded.people:
        query = queries[person.path.name]
        assert (person.identity, person.camera) == (query.identity, query.camera)
    assert occluded.kind == sorted(occluded.kind, key=KINDS.index)
    assert [person.path.parts[-3:-1] for person in occluded.people] == [
        (kind, str(level)) for kind, level in zip(occluded.kind, occluded.severity.tolist(), strict=True)
    ]
    one = read_occluded(made, ["frame"])
    assert set(one.kind) == {"frame"}
    assert list(one.made["kinds"]) == ["frame"]


def test_no_name_of_a_training_photo_is_a_pictures_name(drawn: Path, made: Path) -> None:
    training = {path.name for path in (drawn / "bounding_box_train").iterdir()}
    assert not training & {Path(name).name for name in files(made)}
    for row in truth(made):
        if row["kind"] == "frame":
            assert (row["source"], row["source_box"]) == ("", "")
        else:
            folder, name = row["source"].split("/")
            assert (folder, name in training) == ("bounding_box_train", True)
            assert len(row["source_box"].split()) == 4


def test_the_read_truth_is_the_written_one(made: Path) -> None:
    rows = {row["picture"]: row for row in truth(made)}
    occluded = read_occluded(made, KINDS)
    for number, person in enumerate(occluded.people):
        row = rows[person.path.relative_to(made).as_posix()]
        for part in PARTS:
            cell = row[f"{part.name.lower()}_after"]
            assert bool(occluded.sure[number, part]) is (cell != "")
            assert bool(occluded.visible[number, part]) is (cell == "1")
    groups = occluded.groups()
    assert list(groups) == ["kind", "severity", "hidden part"]
    for chosen in (groups["kind"], groups["severity"]):
        assert torch.stack(list(chosen.values())).sum(0).eq(1).all(), "each row in one group"
    for part in PARTS:
        wanted = [rows[each.path.relative_to(made).as_posix()][f"{part.name.lower()}_after"] == "0" for each in
                  occluded.people]  # fmt: skip
        assert groups["hidden part"][part.name.lower()].tolist() == wanted
    assert sum(map(int, groups["hidden part"]["lower_legs"])) > 3


# The truth against pixels


def test_what_is_said_to_be_hidden_is_what_changed(drawn: Path, made: Path) -> None:
    """Pixels of the person that look as before are left; those that look otherwise are hidden (a few look alike)."""
    for row in truth(made):
        if row["kind"] == "frame":
            continue
        before, after = read_photo(drawn / row["photo"]).int(), read_photo(made / row["picture"]).int()
        labels = read_part_map(drawn / "part_maps" / Path(row["photo"]).with_suffix(".png"))
        changed = ((before - after).abs().amax(0) > 24).numpy()  # JPEG changes pixels, but less
        body = labels.numpy() > 0
        share = float(row["hidden_share"])
        least, most = SEVERITIES[int(row["severity"])]
        assert least <= share <= most
        assert changed[body].mean() <= share + 0.06, row
        if share > 0.3:
            assert changed[body].mean() >= 0.3 * share, row
        for part in PARTS:
            pixels = labels.numpy() == part.label
            left = row[f"{part.name.lower()}_left"]
            if pixels.sum() > 40 and left == "1.0000":
                assert changed[pixels].mean() < 0.1, (row, part)


class OneCover(Donors):
    """Gives the same cover each time."""

    def __init__(self, cover: Cover) -> None:
        super().__init__([], Path(), Path())
        self.cover = cover

    def cut(self, *_: Any) -> Cover:
        return self.cover


LABELS = np.zeros((100, 50), np.uint8)
LABELS[0:20, 20:30] = 1
LABELS[20:60, 15:35] = 2
LABELS[60:80, 15:35] = 3
LABELS[80:100, 15:35] = 4


def test_a_mask_that_is_pasted_is_counted_pixel_by_pixel() -> None:
    photo = Image.new("RGB", (50, 100), (10, 20, 30))
    shape = np.zeros((100, 50), np.uint8)
    shape[:, 10:40] = 255
    shape[::2, 25] = 100  # half transparent: it shines through, and counts as not hidden
    cover = Cover(Image.new("RGB", (50, 100), (250, 0, 0)), Image.fromarray(shape), "below", 0, "comb")
    for severity in SEVERITIES:
        found = hide(photo, LABELS, "object", severity, Random(severity), OneCover(cover), 1)
        red = np.asarray(found.picture)[..., 0] == 250
        assert 0 < red.sum() < red.size
        assert found.before == (200, 800, 400, 400)
        assert found.left == tuple(np.count_nonzero((part.label == LABELS) & ~red) for part in PARTS)
        assert found.hidden_share == np.count_nonzero(red & (LABELS > 0)) / 1800
        assert SEVERITIES[severity][0] <= found.hidden_share <= SEVERITIES[severity][1]
        untouched = (np.asarray(found.picture) == (10, 20, 30)).all(-1)
        assert np.count_nonzero(~red & ~untouched) <= 50, "nothing but the half transparent column is in between"


def test_a_frame_is_cut_and_brought_back_to_size() -> None:
    """Each row of the photo has its own brightness, so that the picture tells where it was cut."""
    rows = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None] * 2, (100, 50, 3))
    donors = Donors([], Path(), Path())
    sides = set()
    for seed in range(30):
        found = hide(Image.fromarray(rows.copy()), LABELS, "frame", 2, Random(seed), donors, 1)
        sides.add(found.cover.side)
        picture = np.asarray(found.picture)[..., 0] / 2
        assert picture.shape == (100, 50)
        first, last = picture[0].mean(), picture[-1].mean()
        kept = LABELS[round(first) : round(last) + 1]
        if found.cover.side in ("above", "below"):
            assert found.left == tuple(np.count_nonzero(kept == part.label) for part in PARTS)
            assert found.hidden_share == pytest.approx(1 - np.count_nonzero(kept) / 1800)
        else:
            assert (round(first), round(last)) == (0, 99)
    assert sides == {"left", "right", "above", "below"}


def test_nobody_and_nothing_that_fits_are_told() -> None:
    photo = Image.new("RGB", (50, 100))
    speck = Cover(Image.new("RGB", (2, 2)), Image.new("L", (2, 2), 255), "left", 30, "speck")
    with pytest.raises(OcclusionError, match="shows nobody"):
        hide(photo, np.zeros_like(LABELS), "frame", 1, Random(0), OneCover(speck), 1)
    with pytest.raises(OcclusionError, match="no object of 200 hides 35% to 50% of the person"):
        hide(photo, LABELS, "object", 2, Random(0), OneCover(speck), 1)


# The same each time


def test_the_same_seed_gives_the_same_bytes(drawn: Path, made: Path, tmp_path: Path) -> None:
    moved = copied(drawn, tmp_path / "elsewhere")
    torch.manual_seed(7)
    np.random.default_rng(7)
    occlude(moved, tmp_path / "again", part_maps=moved / "part_maps")
    assert files(tmp_path / "again") == files(made)
    occlude(drawn, tmp_path / "other", part_maps=drawn / "part_maps", seed=1)
    other = files(tmp_path / "other")
    assert other["truth.csv"] != files(made)["truth.csv"]
    assert not {other[name] for name in other} & set(files(made).values())


def test_a_kind_changes_nothing_in_the_others(drawn: Path, made: Path, tmp_path: Path) -> None:
    for kinds in (("object",), ("object",), ("frame", "person")):
        occlude(drawn, tmp_path / "out", part_maps=drawn / "part_maps", kinds=kinds)
        if kinds == ("object",):
            wanted = {name: digest for name, digest in files(made).items() if name.startswith("object/")}
            assert {name: digest for name, digest in files(tmp_path / "out").items() if "/" in name} == wanted
    assert files(tmp_path / "out") == files(made)


def test_chance_of_a_photo_does_not_hang_on_the_others(drawn: Path, made: Path, tmp_path: Path) -> None:
    """With one query less, pictures whose turn gives the same severity stay as they were."""
    fewer = copied(drawn, tmp_path)
    next((fewer / "query").glob("*.jpg")).unlink()
    occlude(fewer, tmp_path / "out", part_maps=fewer / "part_maps")
    mine, whole = files(tmp_path / "out"), files(made)
    shared = {name for name in mine.keys() & whole.keys() if "/" in name}
    assert len(shared) > 5
    assert all(mine[name] == whole[name] for name in shared)


def test_what_is_there_is_kept_unless_told(drawn: Path, made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    name = truth(out)[0]["picture"]
    (out / name).write_bytes(b"changed")
    occlude(drawn, out, part_maps=drawn / "part_maps")
    assert (out / name).read_bytes() == b"changed"
    occlude(drawn, out, part_maps=drawn / "part_maps", overwrite=True)
    assert files(out) == files(made)


def test_two_seeds_do_not_mix(drawn: Path, made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    with pytest.raises(OcclusionError, match=r"another seed.*--overwrite true"):
        occlude(drawn, out, part_maps=drawn / "part_maps", seed=1, kinds=("frame",))
    assert files(out) == files(made)
    occlude(drawn, out, part_maps=drawn / "part_maps", seed=1, kinds=("frame",), overwrite=True)
    assert {name.partition("/")[0] for name in files(out)} == {"frame", "truth.csv", "manifest.json"}
    assert {row["kind"] for row in truth(out)} == {"frame"}


def test_the_manifest_says_what_decided_it(drawn: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert (manifest["query"]["photos"], manifest["query"]["part_maps"]) == (12, 12)
    assert (manifest["train"]["photos"], manifest["train"]["part_maps"]) == (24, 24)
    assert manifest["truth_sha256"] == sha256((made / "truth.csv").read_bytes()).hexdigest()
    assert manifest["rule"]["severities"]["3"] == [0.55, 0.7]
    rows = truth(made)
    for kind in KINDS:
        entry = manifest["kinds"][kind]
        own = [row for row in rows if row["kind"] == kind]
        assert (entry["pictures"], entry["left_out"]) == (12, [])
        shares = [float(row["hidden_share"]) for row in own if row["severity"] == "2"]
        assert entry["severities"]["2"]["hidden_share"] == pytest.approx(sum(shares) / len(shares), abs=1e-4)
        assert entry["severities"]["1"]["most"] < entry["severities"]["2"]["least"]
        assert entry["severities"]["2"]["most"] < entry["severities"]["3"]["least"]
        heads = Counter(row["head_after"] for row in own)
        assert entry["parts"]["head"] == {"visible": heads["1"], "hidden": heads["0"], "unsure": heads[""]}
    capsys.readouterr()
    assert occlude(drawn, made, part_maps=drawn / "part_maps", json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(made), **manifest}


def test_part_maps_are_part_of_what_decided_it(drawn: Path, made: Path, tmp_path: Path) -> None:
    moved = copied(drawn, tmp_path)
    path = next((moved / "part_maps" / "query").glob("*.png"))
    labels = read_part_map(path)
    labels[0, 0] = 1
    write_part_map(path, labels)
    with pytest.raises(OcclusionError, match="other part maps"):
        occlude(moved, made, part_maps=moved / "part_maps")


# Bad input


def test_a_query_that_cannot_be_used_is_left_out_and_named(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = copied(drawn, tmp_path)
    broken, mapless, empty, strange = sorted((moved / "query").glob("*.jpg"))[:4]
    broken.write_bytes(broken.read_bytes()[:100])
    maps = moved / "part_maps" / "query"
    (maps / f"{mapless.stem}.png").unlink()
    Image.new("L", (32, 64)).save(maps / f"{empty.stem}.png")
    Image.new("L", (32, 64), 7).save(maps / f"{strange.stem}.png")
    assert occlude(moved, tmp_path / "out", part_maps=moved / "part_maps", kinds=("frame",)) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped ")]
    assert len(told) == 4
    for line, path, why in zip(
        told, (broken, mapless, empty, strange), ("", "no such file", "nobody", "holds 7"), strict=True
    ):
        assert path.stem in line
        assert why in line
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["kinds"]["frame"]
    assert entry["pictures"] == 8
    assert entry["left_out"] == sorted(path.name for path in (broken, mapless, empty, strange))
    assert len(read_occluded(tmp_path / "out", ["frame"]).people) == 8


def test_an_unusable_donor_is_told(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = copied(drawn, tmp_path)
    broken = sorted((moved / "bounding_box_train").glob("*.jpg"))
    for path in broken[::2]:
        path.write_bytes(b"")
    assert occlude(moved, tmp_path / "out", part_maps=moved / "part_maps", kinds=("object",)) == 1
    assert "the file is empty" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["kinds"]["object"]["pictures"] == 12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"root": "gone"}, "gone: none of Market-1501's folders"),
        ({"part_maps": "gone"}, "no part map of a training photo"),
        ({"out": "file"}, "no empty folder"),
        ({"out": "full"}, "no empty folder"),
        ({"kinds": ()}, "kinds is empty"),
    ],
)
def test_bad_words_are_one_line(drawn: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    words: dict[str, Any] = {"root": drawn, "out": tmp_path / "out", "part_maps": drawn / "part_maps"}
    words.update({key: tmp_path / value if isinstance(value, str) else value for key, value in change.items()})
    root, out = words.pop("root"), words.pop("out")
    with pytest.raises(ValueError, match=r".") as caught:
        occlude(root, out, **words)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


def test_no_query_at_all_leaves_nothing_half_made(drawn: Path, tmp_path: Path) -> None:
    moved = copied(drawn, tmp_path)
    shutil.rmtree(moved / "part_maps" / "query")
    with pytest.raises(OcclusionError, match=r"no query could be used: .*no such file"):
        occlude(moved, tmp_path / "out", part_maps=moved / "part_maps")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_what_is_read_must_be_what_was_written(made: Path, tmp_path: Path) -> None:
    def spoilt(name: str) -> Path:
        return Path(shutil.copytree(made, tmp_path / name))

    with pytest.raises(OcclusionError, match=r"manifest.json: no such file; give the folder that hpnet occlude wrote"):
        read_occluded(tmp_path, ["person"])
    (spoilt("a") / "manifest.json").write_text("{")
    (spoilt("b") / "manifest.json").write_text("[]")
    for name in "ab":
        with pytest.raises(OcclusionError, match="not a manifest of hpnet occlude"):
            read_occluded(tmp_path / name, ["person"])
    path = spoilt("c") / "truth.csv"
    path.write_text(path.read_text().replace(",1,", ",0,", 1))
    with pytest.raises(OcclusionError, match="is not the truth that"):
        read_occluded(tmp_path / "c", ["person"])
    path = spoilt("d") / "truth.csv"
    path.write_text("photo\n")
    with pytest.raises(OcclusionError, match="has other columns"):
        read_occluded(tmp_path / "d", ["person"])
    (spoilt("e") / "truth.csv").unlink()
    with pytest.raises(OcclusionError, match="no such file"):
        read_occluded(tmp_path / "e", ["person"])
    gone = spoilt("f") / truth(made)[0]["picture"]
    gone.unlink()
    with pytest.raises(OcclusionError, match=f"{gone.name}: no such picture"):
        read_occluded(tmp_path / "f", KINDS)
    with pytest.raises(OcclusionError, match="no pictures of kind umbrella"):
        read_occluded(made, ["frame", "umbrella"])


# Queries to choose things by


def test_held_out_people_are_occluded_by_others(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "held out"
    assert occlude(drawn, out, part_maps=drawn / "part_maps", held_out=2) == 0
    queries, gallery = hold_out(read_split("market1501", drawn, "train"), 2)
    rows = truth(out)
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(KINDS, len(queries))
    assert {row["photo"] for row in rows} == {f"bounding_box_train/{person.path.name}" for person in queries}
    own = {f"bounding_box_train/{person.path.name}" for person in (*queries, *gallery)}
    assert not own & {row["source"] for row in rows}
    occluded = read_occluded(out, KINDS)
    assert occluded.made["held_out"] == 2
    assert {person.identity for person in occluded.people} == {person.identity for person in queries}
    with pytest.raises(OcclusionError, match="another seed, other photos"):
        occlude(drawn, out, part_maps=drawn / "part_maps")


@pytest.mark.parametrize("held_out", [-1, 6, 100])
def test_somebody_must_be_left_to_cut_from(held_out: int, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(OcclusionError, match="held_out"):
        occlude(drawn, tmp_path / "out", part_maps=drawn / "part_maps", held_out=held_out)
    assert not (tmp_path / "out").exists()
