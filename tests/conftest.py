"""Fixtures shared by all tests. Shapes and types are executed: every call into hpnet is checked by beartype."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Not as a context: modules that are imported lazily must be checked too.
install_import_hook("hpnet", "beartype.beartype")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: $HPNET_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("HPNET_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing; set HPNET_DATA")
    return folder


def _unpacked(archive: Path, factory: pytest.TempPathFactory) -> Path:
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} is missing; set HPNET_DATA")
    folder = factory.mktemp(archive.stem)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def market1501_root(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Market-1501, unpacked for this session."""
    return _unpacked(real_data / "market1501.tar", tmp_path_factory) / "Market-1501-v15.09.15"


@pytest.fixture(scope="session")
def pascal_root(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pascal-Person-Part, unpacked for this session."""
    return _unpacked(real_data / "pascal_person_part.tar", tmp_path_factory) / "pascal_person_part"
