from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_length
from torch import Tensor

from hpnet.data import labels
from hpnet.data.fields import fields_to_part_map
from hpnet.data.labelkinds import KINDS
from hpnet.data.labels import RULES, import_labels
from hpnet.data.photos import read_part_map, read_photo, write_part_map
from hpnet.data.skeletons import draw_part_map
from hpnet.data.synthetic import draw
from hpnet.parts import Part, fold

SIZE = (128, 64)
# A doll that stands in a photo of 128 x 64 pixels: OpenPose's 18 joints, and the same as COCO's 17.
OPENPOSE = torch.tensor(
    [[32, 16], [32, 30], [21, 30], [15, 46], [13, 60], [43, 30], [49, 46], [51, 60], [26, 64], [26, 88], [26, 112],
     [38, 64], [38, 88], [38, 112], [30, 14], [34, 14], [27, 16], [37, 16]],
)  # fmt: skip
COCO17 = OPENPOSE[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
ALL18, ALL17 = torch.ones(18, dtype=torch.bool), torch.ones(17, dtype=torch.bool)
DOLL = draw_part_map(OPENPOSE, ALL18, SIZE, "openpose18")
ROUGH_HEAD = Part.HEAD.label


def photo(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (90, 120, 60)).save(path, format="JPEG")
    return path


def authors_png(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(content, np.uint8)).save(path)
    return path


def openpose_json(path: Path, *people: Tensor, seen: Tensor = ALL18) -> Path:
    """A file as OpenPose writes it, of its COCO model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [torch.cat([points * seen[:, None], 0.8 * seen[:, None]], 1).flatten().tolist() for points in people]
    entries = [{"person_id": [-1], "pose_keypoints_2d": values} for values in rows]
    path.write_text(json.dumps({"version": 1.3, "people": entries}))
    return path


def coco_json(path: Path, *photos: tuple[str, list[Tensor]], size: tuple[int, int] = SIZE) -> Path:
    """A file as COCO's person_keypoints, all joints visible."""
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, _) in enumerate(photos)
    ]
    annotations = [
        {"id": 10 * number + place, "image_id": number,
         "keypoints": torch.cat([each, 2 * torch.ones(17, 1)], 1).flatten().tolist()}
        for number, (_, people) in enumerate(photos)
        for place, each in enumerate(people)
    ]  # fmt: skip
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def maps_of(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))


def manifest_of(out: Path) -> dict[str, Any]:
    content = json.loads((out / "manifest.json").read_text())
    assert isinstance(content, dict)
    return content


# A doll with the authors' seven labels: the drawn parts, cut further into arms and feet.
AUTHORS = torch.tensor([0, 1, 2, 5, 6], dtype=torch.uint8)[DOLL.long()]
AUTHORS[:, :19] = torch.where(AUTHORS[:, :19] == 2, 3, AUTHORS[:, :19])  # upper arm
AUTHORS[45:, :19] = torch.where(AUTHORS[45:, :19] == 3, 4, AUTHORS[45:, :19])  # lower arm
AUTHORS[112:] = torch.where(AUTHORS[112:] == 6, 7, AUTHORS[112:])  # foot
FIELDS = torch.zeros(36, 17, 9)
FIELDS[0, :5, 3:6], FIELDS[23, 4:8, 2:7] = 0.9, 0.8
FIELDS[18, 8:11, 3], FIELDS[17, 11:15, 3] = 0.7, 0.7


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    root = tmp_path / "ps_label"
    assert AUTHORS.unique().tolist() == list(range(8))
    for name in ("bounding_box_train/0002_c1.png", "bounding_box_train/0007_c2.png", "query/1488_c1.jpg.png"):
        authors_png(root / name, AUTHORS)
    return root


# --- every kind


def test_the_authors_labels_fold_into_the_parts(
    authors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts"
    assert import_labels(authors, out, json=True) == 0
    said = capsys.readouterr()
    assert f"{authors}: {KINDS['authors']}\n" in said.err
    assert maps_of(out) == ["bounding_box_train/0002_c1.png", "bounding_box_train/0007_c2.png", "query/1488_c1.jpg.png"]
    assert all(torch.equal(read_part_map(out / name), DOLL) for name in maps_of(out))
    assert json.loads(said.out) == {"out": str(out), **manifest_of(out)}
    assert manifest_of(out) == {
        "kind": "authors", "source": "ps_label", "size": None, "rule": RULES["authors"], "complete": True,
        "maps": 3, "written": 3, "kept": 0, "visible": {part.name: 1.0 for part in Part},
        "empty": 0, "nobody": [], "several": [], "skipped": [],
    }  # fmt: skip


def test_confidence_fields_are_laid_over_their_photos(tmp_path: Path) -> None:
    source, out = tmp_path / "pifpaf_maskrcnn_filtering", tmp_path / "parts"
    for name in ("train/a.npy", "train/b.npy", "train/c.jpg.npy"):  # c.jpg.jpg is a photo too
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(source / name, FIELDS.numpy())
    assert import_labels(source, out) == 0
    assert maps_of(out) == ["train/a.png", "train/b.png", "train/c.jpg.png"]
    assert torch.equal(read_part_map(out / "train/a.png"), fields_to_part_map(FIELDS, SIZE))
    photo(tmp_path / "set/train/a.jpg", (160, 60))
    photo(tmp_path / "set/train/b.png", (40, 20))
    photo(tmp_path / "set/train/c.jpg.jpg", (128, 64))
    assert import_labels(source, tmp_path / "fitting", photos=tmp_path / "set") == 0
    sizes = [tuple(read_part_map(tmp_path / "fitting/train" / f"{name}.png").shape) for name in ("a", "b", "c.jpg")]
    assert sizes == [(160, 60), (40, 20), (128, 64)]
    assert import_labels(source, tmp_path / "sized", size=(64, 32)) == 0
    assert read_part_map(tmp_path / "sized/train/a.png").shape == (64, 32)


@pytest.mark.parametrize("ending", [".jpg.confidence_fields.npy", ".jpg.npy", ".npy", ".confidence_fields.npy"])
def test_a_fields_name_gives_its_photos(tmp_path: Path, ending: str) -> None:
    for name in ("0002_c1", "0007_c2.v2"):
        (tmp_path / "some").mkdir(exist_ok=True)
        np.save(tmp_path / "some" / f"{name}{ending}", FIELDS.numpy())
    assert import_labels(tmp_path / "some", tmp_path / "out") == 0
    assert maps_of(tmp_path / "out") == ["0002_c1.png", "0007_c2.v2.png"]


def test_a_folder_of_several_sets_of_masks_is_not_guessed_about(tmp_path: Path) -> None:
    for name in ("pifpaf/train/a.jpg.confidence_fields.npy", "pifpaf_maskrcnn_filtering/train/a.npy"):
        (tmp_path / "masks" / name).parent.mkdir(parents=True)
        np.save(tmp_path / "masks" / name, FIELDS.numpy())
    with pytest.raises(ValueError, match=r"masks in pifpaf and pifpaf_maskrcnn_filtering.*give pifpaf_maskrcnn_filter"):
        import_labels(tmp_path / "masks", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_openposes_joints_are_drawn(tmp_path: Path) -> None:
    source, out = tmp_path / "poses", tmp_path / "parts"
    hidden = ALL18.clone()
    hidden[[9, 10, 12, 13]] = False
    openpose_json(source / "train/a_keypoints.json", OPENPOSE)
    openpose_json(source / "train/b_keypoints.json", OPENPOSE, seen=hidden)
    openpose_json(source / "c.json", OPENPOSE + torch.tensor([40, 0]), OPENPOSE, OPENPOSE - torch.tensor([40, 0]))
    openpose_json(source / "d_keypoints.json")
    assert import_labels(source, out, size=SIZE) == 0
    assert maps_of(out) == ["c.png", "train/a.png", "train/b.png"]
    assert torch.equal(read_part_map(out / "train/a.png"), DOLL)
    assert torch.equal(read_part_map(out / "train/b.png"), draw_part_map(OPENPOSE, hidden, SIZE, "openpose18"))
    assert torch.equal(read_part_map(out / "c.png"), DOLL)
    manifest = manifest_of(out)
    assert (manifest["nobody"], manifest["several"]) == (["d"], ["c"])
    assert manifest["visible"] == {"HEAD": 1.0, "TORSO": 1.0, "UPPER_LEGS": 0.6667, "LOWER_LEGS": 0.6667}


def test_openposes_joints_lie_in_their_photos_pixels(tmp_path: Path) -> None:
    source = tmp_path / "poses"
    openpose_json(source / "a_keypoints.json", OPENPOSE)
    openpose_json(source / "b_keypoints.json", 2 * OPENPOSE)
    photo(tmp_path / "set/a.jpg")
    photo(tmp_path / "set/b.jpg", (256, 128))
    assert import_labels(source, tmp_path / "parts", photos=tmp_path / "set") == 0
    assert torch.equal(read_part_map(tmp_path / "parts/a.png"), DOLL)
    assert read_part_map(tmp_path / "parts/b.png").shape == (256, 128)
    assert import_labels(source, tmp_path / "small", photos=tmp_path / "set", size=SIZE) == 0
    other = read_part_map(tmp_path / "small/b.png")
    assert other.shape == SIZE
    assert float((other != DOLL).float().mean()) < 0.04  # half a pixel along the edges


def test_openpose_does_not_say_how_large_the_photo_is(tmp_path: Path) -> None:
    openpose_json(tmp_path / "poses/a_keypoints.json", OPENPOSE)
    assert import_labels(tmp_path / "poses", tmp_path / "out") == 1
    (skipped,) = manifest_of(tmp_path / "out")["skipped"]
    assert "a_keypoints.json: does not say how large its photo is; give --photos or --size" in skipped["reason"]


def test_cocos_joints_are_drawn(tmp_path: Path) -> None:
    aside = COCO17 + torch.tensor([30, 0])
    source = coco_json(
        tmp_path / "person_keypoints.json",
        ("train/a.jpg", [COCO17]), ("train/b.jpg", [aside, COCO17]), ("c.jpg", []),
    )  # fmt: skip
    out = tmp_path / "parts"
    assert import_labels(source, out) == 0
    assert maps_of(out) == ["train/a.png", "train/b.png"]
    expected = draw_part_map(COCO17, ALL17, SIZE, "coco17")
    assert all(torch.equal(read_part_map(out / name), expected) for name in maps_of(out))
    assert (manifest_of(out)["nobody"], manifest_of(out)["several"]) == (["c"], ["train/b"])
    assert float((expected != DOLL).float().mean()) < 0.01  # both formats say the same of one doll


def test_a_doll_of_joints_is_like_the_doll_that_was_drawn(tmp_path: Path) -> None:
    truth = draw(1, 0, 0, size=SIZE)
    out = tmp_path / "parts"
    write_part_map(tmp_path / "truth.png", truth.part_map)
    seven = torch.tensor([0, 1, 3, 5, 7], dtype=torch.uint8)[truth.part_map.long()]
    authors_png(tmp_path / "labels/doll.png", seven)
    assert import_labels(tmp_path / "labels", out) == 0
    assert torch.equal(read_part_map(out / "doll.png"), truth.part_map)


STANDING = [(4, (7, 0, 13, 10)), (2, (4, 10, 16, 40)), (5, (5, 40, 15, 60)), (3, (5, 60, 15, 80))]


def pascal_root(root: Path, train: list[str], val: list[str]) -> Path:
    """Pascal-Person-Part's layout; each photo shows two people."""
    mask = np.zeros((100, 80), np.uint8)
    for x in (5, 50):
        for label, (left, top, right, bottom) in STANDING:
            mask[top + 5 : bottom + 5, left + x : right + x] = label
    for name in train + val:
        authors_png(root / "part_masks" / f"{name}.png", mask)
        photo(root / "JPEGImages" / f"{name}.jpg", (100, 80))
    for split, names in (("train", train), ("val", val)):
        (root / f"{split}_id.txt").write_text("\n".join(names) + "\n")
    return root


def test_the_people_of_pascal_are_cut_out(tmp_path: Path) -> None:
    root, out = pascal_root(tmp_path / "pascal", ["2008_000001", "2008_000002"], ["2008_000003"]), tmp_path / "crops"
    (root / "part_masks" / "2008_000002.png").write_bytes(b"torn")
    assert import_labels(root, out) == 1
    names = ["2008_000001_0", "2008_000001_1", "2008_000003_0", "2008_000003_1"]
    assert maps_of(out) == [f"part_maps/{name}.png" for name in names]
    for name in names:
        part_map = read_part_map(out / "part_maps" / f"{name}.png")
        assert part_map.shape == (256, 128)
        assert part_map.unique().tolist() == [0, 1, 2, 3, 4]
        assert read_photo(out / "photos" / f"{name}.jpg").shape == (3, 256, 128)
    manifest = manifest_of(out)
    assert (manifest["kind"], manifest["maps"], len(manifest["skipped"])) == ("pascal", 4, 1)
    assert "2008_000002.png" in manifest["skipped"][0]["reason"]
    assert import_labels(root, tmp_path / "small", size=(64, 32)) == 1
    assert read_part_map(tmp_path / "small/part_maps/2008_000001_0.png").shape == (64, 32)


def densepose_json(path: Path, box: list[int], name: str = "COCO_train2014_000000000001.jpg") -> Path:
    mask = np.asfortranarray(np.ones((256, 256), np.uint8))
    code = run_length.encode(mask)
    masks = [{"size": [256, 256], "counts": code["counts"].decode()}, *[[]] * 13]
    annotation = {"id": 42, "image_id": 1, "bbox": box, "keypoints": [5, 5, 2] * 17, "dp_masks": masks}
    image = {"id": 1, "file_name": name, "height": 100, "width": 80}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    return path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_people_of_densepose_are_cut_out(tmp_path: Path) -> None:
    source, out = densepose_json(tmp_path / "densepose.json", [10, 10, 30, 80]), tmp_path / "crops"
    with pytest.raises(ValueError, match="give their folder with --photos"):
        import_labels(source, out)
    photo(tmp_path / "train2014/COCO_train2014_000000000001.jpg", (100, 80))
    assert import_labels(source, out, photos=tmp_path / "train2014") == 0
    assert maps_of(out) == ["part_maps/COCO_train2014_000000000001_42.png"]
    assert bool((read_part_map(out / maps_of(out)[0]) == Part.TORSO.label).all())
    assert read_photo(out / "photos/COCO_train2014_000000000001_42.jpg").shape == (3, 256, 128)
    densepose_json(source, [10, 10, 80, 80])
    with pytest.raises(ValueError, match="no person in it is labelled and upright enough"):
        import_labels(source, tmp_path / "none", photos=tmp_path / "train2014")
    assert not (tmp_path / "none").exists()


# --- sizes and photos


def test_labels_must_fit_their_photos(authors: Path, tmp_path: Path) -> None:
    photo(tmp_path / "set/bounding_box_train/0002_c1.jpg")
    small = photo(tmp_path / "set/bounding_box_train/0007_c2.jpg", (64, 32))
    assert import_labels(authors, tmp_path / "out", photos=tmp_path / "set") == 1
    assert maps_of(tmp_path / "out") == ["bounding_box_train/0002_c1.png"]
    wrong, without = manifest_of(tmp_path / "out")["skipped"]
    assert wrong["file"] == str(authors / "bounding_box_train/0007_c2.png")
    assert f"0007_c2.png: 128 x 64 pixels, but {small} has 64 x 32; they must be equal" in wrong["reason"]
    assert "1488_c1.jpg.png: there is no photo query/1488_c1.jpg" in without["reason"]


def test_a_coco_json_must_fit_its_photos(tmp_path: Path) -> None:
    source = coco_json(tmp_path / "a.json", ("a.jpg", [COCO17]), ("b.jpg", [COCO17]))
    photo(tmp_path / "set/a.jpg")
    photo(tmp_path / "set/b.jpg", (64, 128))
    assert import_labels(source, tmp_path / "out", photos=tmp_path / "set") == 1
    assert maps_of(tmp_path / "out") == ["a.png"]
    assert "128 x 64 pixels, but" in manifest_of(tmp_path / "out")["skipped"][0]["reason"]


def test_maps_are_brought_to_the_size_asked_for(authors: Path, tmp_path: Path) -> None:
    import_labels(authors, tmp_path / "out", size=(256, 128))
    twice = DOLL.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(read_part_map(tmp_path / "out/bounding_box_train/0002_c1.png"), twice)
    assert manifest_of(tmp_path / "out")["size"] == [256, 128]


# --- damage, stops, and what is there already


def test_a_bad_label_is_named_and_skipped(authors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = authors / "bounding_box_train/0003.png"
    torn.write_bytes((authors / "bounding_box_train/0002_c1.png").read_bytes()[:-60])
    strange = authors_png(authors / "bounding_box_train/0004.png", [[0, 9]])
    colour = authors_png(authors / "bounding_box_train/0005.png", [[[1, 2, 3]]])
    assert import_labels(authors, tmp_path / "out") == 1
    assert len(maps_of(tmp_path / "out")) == 3
    said = capsys.readouterr().err
    assert f"skipped {torn}: damaged picture" in said
    assert f"skipped {strange}: labels [9] are unknown to the 'authors' labelling, which has 0..7" in said
    assert f"skipped {colour}: a part map must be" in said
    assert [each["file"] for each in manifest_of(tmp_path / "out")["skipped"]] == [str(torn), str(strange), str(colour)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_label_that_may_not_be_read_is_skipped(authors: Path, tmp_path: Path) -> None:
    (authors / "bounding_box_train/0002_c1.png").chmod(0)
    assert import_labels(authors, tmp_path / "out") == 1
    assert len(maps_of(tmp_path / "out")) == 2


def test_damage_of_other_kinds_is_skipped_too(tmp_path: Path) -> None:
    fields, poses = tmp_path / "fields", tmp_path / "poses"
    fields.mkdir()
    np.save(fields / "a.npy", FIELDS.numpy())
    np.save(fields / "b.npy", FIELDS.numpy()[:5])
    np.save(fields / "c.npy", np.where(FIELDS.numpy() > 0.85, np.nan, 0))
    assert import_labels(fields, tmp_path / "one") == 1
    openpose_json(poses / "a_keypoints.json", OPENPOSE)
    (poses / "b_keypoints.json").write_text('{"people": [{"pose_keypoints_2d": [1]}]}')
    (poses / "c_keypoints.json").write_text("{")
    assert import_labels(poses, tmp_path / "two", size=SIZE) == 1
    source = coco_json(tmp_path / "a.json", ("a.jpg", [COCO17]), ("b.jpg", [COCO17]), ("c.jpg", [COCO17]))
    content = json.loads(source.read_text())
    content["annotations"][1]["keypoints"][2] = 7
    content["images"][2]["height"] = 0
    source.write_text(json.dumps(content))
    assert import_labels(source, tmp_path / "three") == 1
    for out in ("one", "two", "three"):
        assert maps_of(tmp_path / out) == ["a.png"]
        reasons = [each["reason"] for each in manifest_of(tmp_path / out)["skipped"]]
        assert len(reasons) == 2
        assert all(f"{name}." in reason or f"{name}_" in reason for name, reason in zip("bc", reasons, strict=True))


def test_a_photos_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    names = ("../a.jpg", str(tmp_path / "b.jpg"), "", "..", "x\0.jpg", "c/../../d.jpg")
    source = coco_json(tmp_path / "in.json", *((name, [COCO17]) for name in names), ("good.jpg", [COCO17]))
    assert import_labels(source, tmp_path / "deep/out") == 1
    assert maps_of(tmp_path) == ["deep/out/good.png"]
    assert len(manifest_of(tmp_path / "deep/out")["skipped"]) == len(names)


def test_two_labels_of_one_photo_are_not_mixed(tmp_path: Path) -> None:
    source = coco_json(tmp_path / "in.json", ("a.jpg", [COCO17]), ("a.png", [COCO17 + torch.tensor([3, 0])]))
    assert import_labels(source, tmp_path / "out") == 1
    assert torch.equal(read_part_map(tmp_path / "out/a.png"), draw_part_map(COCO17, ALL17, SIZE, "coco17"))
    assert "the map a.png is already made" in manifest_of(tmp_path / "out")["skipped"][0]["reason"]


def test_maps_that_are_there_are_kept_unless_asked(authors: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_labels(authors, out)
    mine, missing = out / "bounding_box_train/0002_c1.png", out / "bounding_box_train/0007_c2.png"
    write_part_map(mine, torch.full(SIZE, ROUGH_HEAD, dtype=torch.uint8))
    missing.unlink()
    assert import_labels(authors, out) == 0
    assert bool((read_part_map(mine) == ROUGH_HEAD).all())
    assert torch.equal(read_part_map(missing), DOLL)
    manifest = manifest_of(out)
    assert (manifest["maps"], manifest["written"], manifest["kept"]) == (3, 1, 2)
    assert manifest["visible"] == {"HEAD": 1.0, "TORSO": 0.6667, "UPPER_LEGS": 0.6667, "LOWER_LEGS": 0.6667}
    mine.write_bytes(b"torn")
    assert import_labels(authors, out) == 1  # what is kept is read, so that damage does not stay unseen
    assert str(mine) in manifest_of(out)["skipped"][0]["reason"]
    assert import_labels(authors, out, overwrite=True) == 0
    assert torch.equal(read_part_map(mine), DOLL)
    assert manifest_of(out)["written"] == 3


Stop = Callable[[int], None]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Lets that many maps be written; then somebody presses Ctrl-C."""

    def arrange(count: int) -> None:
        left = iter(range(count))

        def writing(path: Path, part_map: Tensor) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write_part_map(path, part_map)

        monkeypatch.setattr(labels, "write_part_map", writing)

    return arrange


def test_a_run_that_was_stopped_goes_on(authors: Path, tmp_path: Path, stop_after: Stop) -> None:
    out = tmp_path / "out"
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        import_labels(authors, out)
    assert len(maps_of(out)) == 2
    assert manifest_of(out)["complete"] is False
    stop_after(1)
    assert import_labels(authors, out) == 0
    assert (manifest_of(out)["complete"], manifest_of(out)["written"], manifest_of(out)["kept"]) == (True, 1, 2)


def test_cutting_out_that_was_stopped_goes_on(tmp_path: Path, stop_after: Stop) -> None:
    root, out = pascal_root(tmp_path / "pascal", ["a", "b"], []), tmp_path / "out"
    stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        import_labels(root, out)
    crop = out / "photos/a_0.jpg"
    before = crop.stat().st_mtime_ns
    stop_after(3)
    (root / "val_id.txt").unlink()
    assert import_labels(root, out) == 0
    assert crop.stat().st_mtime_ns == before
    assert sorted(path.stem for path in (out / "photos").iterdir()) == ["a_0", "a_1", "b_0", "b_1"]
    assert len(maps_of(out)) == 4


def test_a_run_that_goes_on_still_tells_everything(tmp_path: Path) -> None:
    source, out = tmp_path / "poses", tmp_path / "out"
    openpose_json(source / "a_keypoints.json", OPENPOSE, OPENPOSE + torch.tensor([20, 0]))
    openpose_json(source / "b_keypoints.json")
    (source / "c_keypoints.json").write_text("{")
    assert import_labels(source, out, size=SIZE) == 1
    first = manifest_of(out)
    assert import_labels(source, out, size=SIZE) == 1
    assert manifest_of(out) == {**first, "written": 0, "kept": 1}
    assert (first["several"], first["nobody"], len(first["skipped"])) == (["a"], ["b"], 1)


def test_maps_of_two_sources_do_not_mix(authors: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_labels(authors, out)
    openpose_json(tmp_path / "poses/a_keypoints.json", OPENPOSE)
    with pytest.raises(ValueError, match=r"manifest\.json: the folder holds other maps"):
        import_labels(tmp_path / "poses", out, size=SIZE)
    with pytest.raises(ValueError, match="other maps"):
        import_labels(authors, out, size=(64, 32))
    (out / "manifest.json").write_text("[1")
    with pytest.raises(ValueError, match="other maps"):
        import_labels(authors, out)
    assert import_labels(authors, out, overwrite=True) == 0


# --- the command


def test_a_kind_can_be_said(tmp_path: Path) -> None:
    ours = authors_png(tmp_path / "labels/a.png", [[0, 1], [2, 4]]).parent
    with pytest.raises(ValueError, match="say --kind authors"):
        import_labels(ours, tmp_path / "out")
    assert import_labels(ours, tmp_path / "out", kind="authors") == 0
    part_map = read_part_map(tmp_path / "out/a.png")
    assert torch.equal(part_map, fold(torch.tensor([[0, 1], [2, 4]]), "authors"))


@pytest.mark.parametrize("kind", ["authors", "bpbreid", "openpose", "coco-keypoints", "pascal", "densepose"])
def test_a_kind_that_it_is_not_is_one_clear_line(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "set/a.jpg")
    photos = tmp_path / "set" if kind == "densepose" else None
    with pytest.raises(ValueError, match="empty") as error:
        import_labels(tmp_path / "empty", tmp_path / "out", kind=kind, photos=photos)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_are_refused_before_anything_is_written(authors: Path, tmp_path: Path) -> None:
    file = authors / "query/1488_c1.jpg.png"
    pascal = pascal_root(tmp_path / "pascal", ["a"], [])
    for arguments, message in (
        ({"source": tmp_path / "gone", "out": tmp_path / "out"}, "gone: no such file or folder"),
        ({"source": tmp_path / "gone", "out": tmp_path / "out", "kind": "authors"}, "gone: no such file or folder"),
        ({"source": authors, "out": file}, "is a file; give a folder"),
        ({"source": authors, "out": authors}, "would be taken for labels"),
        ({"source": authors, "out": authors / "deep/out"}, "would be taken for labels"),
        ({"source": authors, "out": tmp_path / "out", "size": (0, 3)}, "at least 1 pixel, not 0 x 3"),
        ({"source": authors, "out": tmp_path / "out", "photos": tmp_path / "gone"}, "gone: no such folder of photos"),
        ({"source": authors, "out": tmp_path / "out", "photos": file}, "no such folder of photos"),
        ({"source": pascal, "out": tmp_path / "out", "photos": authors}, "brings its own photos"),
    ):
        with pytest.raises(ValueError, match=message):
            import_labels(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_screen_names_some_and_counts_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        authors_png(tmp_path / f"labels/{number:02d}.png", [[9]])
    authors_png(tmp_path / "labels/good.png", AUTHORS)
    assert import_labels(tmp_path / "labels", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert said.err.count("skipped ") == 21
    assert "skipped 5 more, which" in said.err
    assert len(manifest_of(tmp_path / "out")["skipped"]) == 25
    for words in ("1 (1 written now)", "torso and arms", "visible in 100.0 %", "25"):
        assert words in said.out
