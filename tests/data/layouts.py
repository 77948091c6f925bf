"""Tiny drawn copies of the data sets, in their exact folder layouts."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from hpnet.data.reid import DATA_SETS

# A few files per split as the data sets name them, with the identity and camera that their names tell.
FILES = {
    "market1501": {
        "bounding_box_train": {
            "0002_c1s1_000451_03.jpg": (2, 1),
            "0002_c2s1_000551_01.jpg": (2, 2),
            "0007_c3s3_077419_03.jpg": (7, 3),
        },
        "query": {"0001_c1s1_001051_00.jpg": (1, 1), "1488_c1s6_023021_00.jpg.jpg": (1488, 1)},
        "bounding_box_test": {
            "-1_c1s1_000401_03.jpg": (-1, 1),
            "-1_c4s6_022316_11.jpg.jpg": (-1, 4),
            "0000_c6s3_094992_01.jpg": (0, 6),
            "0001_c2s1_000301_00.jpg": (1, 2),
        },
    },
    "occluded_duke": {
        "bounding_box_train": {"0002_c1_f0044158.jpg": (2, 1), "7140_c8_f0101010.jpg": (7140, 8)},
        "query": {"0001_c2_f0046182.jpg": (1, 2)},
        "bounding_box_test": {"0001_c5_f0051141.jpg": (1, 5)},
    },
    "partial_reid": {
        "occluded_body_images": {"001_001.jpg": (1, None), "060_005.jpg": (60, None)},
        "partial_body_images": {"001_001.jpg": (1, None)},
        "whole_body_images": {"001_001.jpg": (1, None), "060_001.jpg": (60, None)},
    },
    "partial_ilids18": {
        "Probe": {"1.jpg": (1, None), "10.jpg": (10, None), "119.jpg": (119, None)},
        "Gallery": {"1.jpg": (1, None), "10.jpg": (10, None), "119.jpg": (119, None)},
    },
    "partial_ilids19": {
        "Probe": {"0001001.jpg": (1, None), "0119004.jpg": (119, None)},
        "Gallery": {"0001002.jpg": (1, None), "0119_c.png": (119, None)},
    },
    "occluded_reid": {
        "occluded_body_images": {"001_01.jpg": (1, None), "200_05.jpg": (200, None)},
        "whole_body_images": {"001_01.jpg": (1, None), "200_05.jpg": (200, None)},
    },
}
NESTED_OCCLUDED_REID = {
    "occluded_body_images": {"001/001_01.tif": (1, None), "200/200_05.tif": (200, None)},
    "whole_body_images": {"001/001_01.tif": (1, None), "200/200_05.tif": (200, None)},
}


def picture(suffix: str = ".jpg", size: tuple[int, int] = (8, 16)) -> bytes:
    """The bytes of a small picture; size is (width, height), as Pillow has it."""
    stream = BytesIO()
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".png": "PNG"}[suffix]
    Image.new("RGB", size, (200, 30, 90)).save(stream, kind)
    return stream.getvalue()


def write(root: Path, names: dict[str, dict[str, tuple[int, int | None]]] | dict[str, list[str]]) -> Path:
    """Write a picture for every folder and name; gives back root."""
    for folder, files in names.items():
        for name in files:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(path.suffix))
    return root


def write_whole(name: str, root: Path) -> Path:
    """Write a small data set in full: as many identities and images as published."""
    form = {
        "partial_reid": "{0:03d}_{1:03d}.jpg",
        "partial_ilids18": "{0}.jpg",
        "partial_ilids19": "{0:04d}{1:03d}.jpg",
        "occluded_reid": "{0:03d}/{0:03d}_{1:02d}.tif",
    }[name]
    names = {}
    for split in DATA_SETS[name].splits.values():
        places = [(number % split.identities + 1, number // split.identities + 1) for number in range(split.images)]
        names[split.folder] = [form.format(identity, image) for identity, image in places]
    return write(root, names)
