"""What goes wrong around a gallery, done on purpose: killed writers, a full disk, damaged files, others at work.

`HPNET_KILLS=100 pytest tests/gallery/test_faults.py -k killed -s` kills a hundred writers and prints what was seen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpnet.gallery import Gallery, GalleryError, commits
from hpnet.parts import PartFeatures

WEIGHTS = "0" * 64
KILLS = int(os.environ.get("HPNET_KILLS", "10"))

BEGIN = """
import os, signal, sys, time, torch
from pathlib import Path
from hpnet.gallery import Gallery, GalleryError
from hpnet.parts import PartFeatures
torch.set_num_threads(1)
path = sys.argv[1]
def people(count, axis=0):
    features = torch.zeros(count, 4, 64)
    features[..., axis] = 1
    return PartFeatures(features, torch.ones(count, 4, dtype=torch.bool))
"""


def people(count: int, axis: int = 0) -> PartFeatures:
    features = torch.zeros(count, 4, 64)
    features[..., axis] = 1
    return PartFeatures(features, torch.ones(count, 4, dtype=torch.bool))


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", WEIGHTS)


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(program), *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def data_files(gallery: Gallery) -> set[str]:
    return {file.name for file in (gallery.path / "data").iterdir()}


def referenced(gallery: Gallery) -> set[str]:
    return {Path(file.path).name for piece in gallery._latest().get_fragments() for file in piece.data_files()}


# Killed


# One process that imports once and forks writers, each killed at another moment of its work. It does not use Lance
# itself, whose threads do not outlive a fork: what there is after each kill is told by another fork.
AFTER_KILL = """
import lance, zoneinfo
def after_kill(look):
    reader = os.fork()
    if reader == 0:
        os.write(1, f"opened {look(Gallery.open(path))}\\n".encode())
        os._exit(0)
    assert os.waitpid(reader, 0)[1] == 0, "the gallery does not open"
"""

KILLED_WRITERS = """
import random
random.seed(4)

def write(attempt, ready):
    gallery = Gallery.open(path)
    if attempt % 2:
        os.write(ready, b"x")
    for batch in range(1000):
        name = f"{attempt}/{batch}"
        more = {"attributes": {"batch": [batch] * 300}} if attempt > 1 else {}
        ids = gallery.add(people(300), [name] * 300, cameras=[batch] * 300 if attempt > 2 else None, **more)
        os.write(1, f"acknowledged {name} {ids[0]} {ids[-1]}\\n".encode())
        if batch == 0 and attempt % 2 == 0:  # however slow the machine is, something is acknowledged
            os.write(ready, b"x")

for attempt in range(int(sys.argv[2])):
    heard, ready = os.pipe()
    writer = os.fork()
    if writer == 0:
        write(attempt, ready)
    os.read(heard, 1)
    time.sleep(random.uniform(0.0, 0.2))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(heard), os.close(ready)
    after_kill(len)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_writers_lose_nothing_acknowledged_and_leave_nothing_by_half(gallery: Gallery) -> None:
    lines = [line.split() for line in run(AFTER_KILL + KILLED_WRITERS, gallery.path, str(KILLS)).splitlines()]
    acknowledged = {line[1]: range(int(line[2]), int(line[3]) + 1) for line in lines if line[0] == "acknowledged"}
    opened = [int(line[1]) for line in lines if line[0] == "opened"]
    assert len(opened) == KILLS
    assert opened == sorted(opened)
    assert all(count % 300 == 0 for count in opened), "half a batch is seen"
    found: dict[str, list[int]] = {}
    for match in Gallery.open(gallery.path).search(people(1), k=10**6)[0]:
        found.setdefault(match.path, []).append(match.id)
    assert acknowledged
    for name, ids in acknowledged.items():
        assert sorted(found[name]) == list(ids), "an acknowledged batch is not whole"
    assert {len(ids) for ids in found.values()} == {300}, "half a batch is seen"
    left = data_files(gallery) - referenced(gallery)
    again = Gallery.open(gallery.path)
    again.compact()
    assert data_files(gallery) == referenced(gallery), "what a killed writer left is not cleaned up"
    assert len(again) == opened[-1]
    assert again.add(people(1), ["after.jpg"]) > [max(max(ids) for ids in found.values())]
    unheard = len(found) - len(acknowledged)
    print(
        f"{KILLS} kills: {len(acknowledged)} batches acknowledged, all whole; {unheard} more committed but not yet "
        f"acknowledged, whole; {len(left)} files of unfinished batches, deleted by compact"
    )


KILLED_COMPACTION = """
for attempt in range(6):
    heard, ready = os.pipe()
    worker = os.fork()
    if worker == 0:
        gallery = Gallery.open(path)
        os.write(ready, b"x")
        while True:
            gallery.add(people(200), ["more.jpg"] * 200)
            gallery.remove(filter="path = 'more.jpg'")
            gallery.compact()
    os.read(heard, 1)
    time.sleep(0.02 + 0.023 * attempt)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    os.close(heard), os.close(ready)
    after_kill(lambda gallery: gallery.count("path = 'kept.jpg'"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_compacting_keeps_everybody(gallery: Gallery) -> None:
    ids = gallery.add(people(500, 3), ["kept.jpg"] * 500)
    assert run(AFTER_KILL + KILLED_COMPACTION, gallery.path).splitlines() == ["opened 500"] * 6
    again = Gallery.open(gallery.path)
    assert {match.id for match in again.search(people(1, 3), k=1000, filter="path = 'kept.jpg'")[0]} == set(ids)
    again.compact()
    assert data_files(again) == referenced(again)


# A full disk


FULL_DISK = """
gallery = Gallery.open(path)
before = len(gallery)
for attempt in range(20):
    try:
        gallery.add(people(1000), ["b.jpg"] * 1000)
        before += 1000
    except GalleryError as error:
        print(error)
        break
assert len(gallery) == len(Gallery.open(path)) == before
assert len(gallery.search(people(1), k=10**5)[0]) == before
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not permitted; the limit of file sizes is tested instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_gets_one_line_and_harms_nothing(small_disk: Path) -> None:
    gallery = Gallery.create(small_disk / "gallery", WEIGHTS)
    ids = gallery.add(people(10, 1), ["a.jpg"] * 10)
    (line,) = run(FULL_DISK, gallery.path).splitlines()
    assert line.startswith(f"{gallery.path}: ")
    assert "No space left on device" in line
    kept = len(gallery)
    gallery.remove(filter=f"path = 'b.jpg' AND _rowid < {kept // 2}")
    gallery.compact()
    assert gallery.add(people(50), ["c.jpg"] * 50), "there is room again"
    assert {match.id for match in gallery.search(people(1, 1), k=10)[0]} == set(ids)


def test_a_file_that_cannot_grow_gets_one_line_and_harms_nothing(gallery: Gallery) -> None:
    gallery.add(people(10), ["a.jpg"] * 10)
    limit = """
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    """
    (line,) = run(textwrap.dedent(limit) + FULL_DISK, gallery.path).splitlines()
    assert line.startswith(f"{gallery.path}: ")
    assert "File too large" in line
    assert len(gallery) == 10
    assert gallery.add(people(1000), ["b.jpg"] * 1000)
    gallery.compact()
    assert data_files(gallery) == referenced(gallery)


def run_as_nobody(program: str, path: Path, closed: Path | None = None) -> list[str]:
    """Run as a user to whom permissions apply; the superuser may read and write everywhere."""
    for folder in path.parents:
        if "pytest-of-" in str(folder):
            folder.chmod(0o755)
    if closed is not None:
        closed.chmod(0)
    demoted = """
    import lance, zoneinfo  # what is imported later may be out of reach
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    """
    return run(textwrap.dedent(demoted) + textwrap.dedent(program), path).splitlines()


def test_a_folder_for_reading_only_can_be_searched(gallery: Gallery) -> None:
    ids = gallery.add(people(3), ["a.jpg"] * 3)
    everything = [gallery.path, *gallery.path.rglob("*")]
    for each in everything:
        each.chmod(0o555 if each.is_dir() else 0o444)
    program = """
    gallery = Gallery.open(path)
    print(*(match.id for match in gallery.search(people(1))[0]), len(gallery.entries()))
    for change in (lambda: gallery.add(people(1), ["b.jpg"]), lambda: gallery.remove([0]), gallery.compact):
        try:
            change()
        except GalleryError as error:
            print(error)
    """
    try:
        found, *refused = run_as_nobody(program, gallery.path)
    finally:
        for each in everything:
            each.chmod(0o755 if each.is_dir() else 0o644)
    assert found == " ".join(map(str, [*ids, 3]))
    assert len(refused) == 3
    assert all(line.startswith(str(gallery.path)) and "ermission denied" in line for line in refused), refused
    assert len(gallery) == 3


@pytest.mark.parametrize("closed", ["gallery", "folder above"])
def test_a_gallery_out_of_reach_is_named(gallery: Gallery, closed: str) -> None:
    shut = gallery.path if closed == "gallery" else gallery.path.parent
    program = """
    try:
        Gallery.open(path)
    except GalleryError as error:
        print(error)
    """
    try:
        (line,) = run_as_nobody(program, gallery.path, closed=shut)
    finally:
        shut.chmod(0o755)
    assert line.startswith(str(gallery.path))
    assert "ermission denied" in line


# Damaged files


@pytest.mark.parametrize("damage", ["cut short", "empty", "missing", "overwritten"])
def test_a_damaged_data_file_is_named(gallery: Gallery, damage: str) -> None:
    gallery.add(people(100), ["a.jpg"] * 100)
    (whole,) = (gallery.path / "data").iterdir()
    gallery.add(people(100), ["b.jpg"] * 100)
    (file,) = set((gallery.path / "data").iterdir()) - {whole}
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changed = {"cut short": content[: len(content) // 2], "empty": b"", "overwritten": b"\xa5" * len(content)}
        file.write_bytes(changed[damage])
    for look in (
        lambda: Gallery.open(gallery.path).search(people(1)),
        lambda: Gallery.open(gallery.path, memory=0).search(people(1)),
        lambda: Gallery.open(gallery.path).compact(),
    ):
        with pytest.raises(GalleryError) as caught:
            look()
        assert str(gallery.path) in str(caught.value)
        assert file.name in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"broken", b"\0" * 5000])
def test_a_damaged_version_is_named_and_the_one_before_opens(gallery: Gallery, content: bytes) -> None:
    gallery.add(people(5), ["a.jpg"] * 5)
    gallery.add(people(5), ["b.jpg"] * 5)
    versions = gallery.history()
    newest = min((gallery.path / "_versions").glob("*.manifest"))
    newest.write_bytes(content)
    with pytest.raises(GalleryError, match=str(gallery.path)) as caught:
        Gallery.open(gallery.path)
    assert "\n" not in str(caught.value)
    before = Gallery.open(gallery.path, version=versions[1].number)
    assert [match.path for match in before.search(people(1))[0]] == ["a.jpg"] * 5


# Others at work


def start(program: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(program), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_a_search_is_not_disturbed_by_files_deleted_meanwhile(gallery: Gallery) -> None:
    gallery.add(people(2000), ["a.jpg"] * 2000)
    program = """
    gallery = Gallery.open(path)
    for _ in range(10):
        gallery.add(people(50), ["b.jpg"] * 50)
        gallery.compact()
    """
    worker = start(program, gallery.path)
    from_memory, from_disk = Gallery.open(gallery.path), Gallery.open(gallery.path, memory=0)
    rounds = 0
    while worker.poll() is None:
        for reader in (from_memory, from_disk):
            assert len(reader.search(people(1), k=5)[0]) == 5
            assert reader.apart(people(1))[0].count == 0
        rounds += 1
    finished(worker)
    assert rounds > 3


def test_adding_removing_compacting_and_reading_at_once_agree(gallery: Gallery) -> None:
    adding = """
    gallery = Gallery.open(path)
    for batch in range(25):
        gallery.add(people(20), ["added.jpg"] * 20)
    """
    removing = """
    gallery = Gallery.open(path)
    for number in range(40):
        assert gallery.remove([number]) == 1
    """
    compacting = """
    gallery = Gallery.open(path)
    for _ in range(8):
        gallery.compact()
    """
    gallery.add(people(100, 1), ["first.jpg"] * 100)
    workers = [start(program, gallery.path) for program in (adding, adding, removing, compacting)]
    sizes = []
    while any(worker.poll() is None for worker in workers):
        sizes.append(gallery.count("path = 'added.jpg'"))
        assert len(gallery.entries("path = 'first.jpg'", limit=200)) in range(60, 101)
    for worker in workers:
        finished(worker)
    assert all(size % 20 == 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert gallery.counts("camera") == {None: 60 + 2 * 25 * 20}
    ids = {match.id for match in gallery.search(people(1, 1), k=60)[0]}
    assert ids == set(range(40, 100))


def test_files_are_deleted_only_by_who_is_alone(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery.add(people(5), ["a.jpg"] * 5)
    monkeypatch.setattr(commits, "PATIENCE", 0.05)
    with (
        commits.in_use(gallery.path),
        commits.in_use(gallery.path),
        pytest.raises(GalleryError, match="other processes use it all the time; older versions were not deleted"),
    ):
        gallery.compact()
    assert gallery.compact().versions_deleted > 0


def test_a_killed_user_holds_nobody_up(gallery: Gallery) -> None:
    program = """
    from hpnet.gallery import commits
    with commits.in_use(Path(path)):
        print("in use", flush=True)
        time.sleep(600)
    """
    user = start(program, gallery.path)
    assert user.stdout
    assert user.stdout.readline() == "in use\n"
    user.send_signal(signal.SIGKILL)
    user.communicate()
    gallery.compact()


def test_without_locks_the_files_of_others_are_left_alone(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    gallery.add(people(5), ["a.jpg"] * 5)
    stranger = gallery.path / "data" / ("1" * 24 + "0" * 26 + ".lance")
    stranger.write_bytes((gallery.path / "data" / next(iter(data_files(gallery)))).read_bytes())
    monkeypatch.setattr(commits.fcntl, "flock", refuse)
    done = gallery.compact()
    assert done.leftovers_kept
    assert stranger.exists()
    assert gallery.add(people(5), ["b.jpg"] * 5)
    monkeypatch.undo()
    assert not gallery.compact().leftovers_kept
    assert not stranger.exists()
