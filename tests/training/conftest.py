"""Small drawn data and a tiny recipe, shared by the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpnet.data.synthetic import SyntheticConfig, draw, write_market1501
from hpnet.model import ModelConfig
from hpnet.training.recipe import Recipe

TINY = ModelConfig(trunk="resnet18", branch="compact", size=(64, 32), parsing_channels=8)
# Part.label -> a label of Pascal-Person-Part: head 4, torso 2, upper leg 5, lower leg 3.
PASCAL_LABEL = np.array([0, 4, 2, 5, 3], np.uint8)


@pytest.fixture(scope="session")
def dolls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set in Market-1501's layout: 8 identities, 4 photos each, and their part maps."""
    root = tmp_path_factory.mktemp("dolls") / "Market-1501"
    config = SyntheticConfig(
        identities=8, test_identities=4, cameras=2, shots=2, distractors=0, junk=0, size=(64, 32), occluded_train=0.2
    )
    write_market1501(root, config)
    return root


@pytest.fixture(scope="session")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set in Pascal-Person-Part's layout."""
    root = tmp_path_factory.mktemp("pascal_person_part")
    (root / "JPEGImages").mkdir()
    (root / "part_masks").mkdir()
    names = [f"doll{number}" for number in range(8)]
    for number, name in enumerate(names):
        drawing = draw(number, 0, 0, seed=5, size=(128, 64))
        Image.fromarray(drawing.photo.permute(1, 2, 0).numpy()).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(PASCAL_LABEL[drawing.part_map.numpy()]).save(root / "part_masks" / f"{name}.png")
    (root / "train_id.txt").write_text("\n".join(names))
    (root / "val_id.txt").write_text("\n".join(names[:3]))
    return root


@pytest.fixture
def tiny(dolls: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes recipes of a run that takes seconds: 2 steps an epoch."""

    def make(**changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "reid": dolls,
            "part_maps": dolls / "part_maps",
            "out": tmp_path / "run",
            "model": TINY,
            "epochs": 3,
            "identities_per_batch": 4,
            "images_per_identity": 2,
            "human_batch": 4,
            "device": "cpu",
        }
        return Recipe(**(settings | changes))

    return make
