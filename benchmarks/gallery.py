"""How fast the gallery finds people, beside FAISS's flat inner product and beside bare memory.

    python benchmarks/gallery.py                                        # a million drawn people
    python benchmarks/gallery.py --people 100000
    python benchmarks/gallery.py --embedded GALLERY.npz QUERIES.npz     # real ones, written by `hpnet embed`

Drawn people lie in clusters, one for each identity, and along few directions, as embeddings do. Real ones are repeated
with a little noise until there are as many as asked for; without a second file every twentieth photo is a query
instead. FAISS compares whole vectors and knows no visibility; what it finds is not what is asked here.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from hpnet.embed import read_features
from hpnet.gallery import Gallery
from hpnet.gallery.bounds import Question
from hpnet.gallery.nearest import at_unit_length
from hpnet.parts import PartFeatures

PARTS, DIMENSIONS = 4, 256
BATCH: Final = 64
AT_ONCE: Final = 20_000  # people in one commit
NOISE: Final = 0.2  # length of what is added to a repeated feature of length 1
BYTES: Final = PARTS * DIMENSIONS * 2  # of one person in float16
Row = tuple[str, str, str, str, str]


class Crowd:
    """Where people come from: n of them, always the same, in batches, and queries like them."""

    def __init__(self, count: int, sources: Sequence[Path]) -> None:
        self.count, self.sources = count, sources
        if sources:
            self._known = read_features(sources[0])[0]
            rows = torch.arange(len(self._known))
            self.queries = read_features(sources[1])[0] if len(sources) > 1 else self._known[rows % 20 == 0]
            self._known = self._known if len(sources) > 1 else self._known[rows % 20 > 0]
            self.queries = self.queries[:: max(1, len(self.queries) // BATCH)][:BATCH]
        else:
            self._known = self._drawn(max(1, count // 20), torch.Generator().manual_seed(1))
            self.queries = self._noisy(torch.arange(BATCH) % len(self._known), 0.6, torch.Generator().manual_seed(2))

    def batches(self) -> Iterator[PartFeatures]:
        """Everybody, some thousands at a time."""
        chance = torch.Generator().manual_seed(0)
        for start in range(0, self.count, AT_ONCE):
            rows = torch.randint(len(self._known), (min(AT_ONCE, self.count - start),), generator=chance)
            yield self._noisy(rows, NOISE if self.sources else 0.6, chance)

    @staticmethod
    def _drawn(identities: int, chance: torch.Generator) -> PartFeatures:
        spread = torch.logspace(0, -1.5, DIMENSIONS)  # 90 % of the energy lie in 64 directions
        features = normalize(torch.randn(identities, PARTS, DIMENSIONS, generator=chance) * spread, dim=-1)
        return PartFeatures(features, torch.rand(identities, PARTS, generator=chance) < 0.85)

    def _noisy(self, rows: torch.Tensor, length: float, chance: torch.Generator) -> PartFeatures:
        chosen = self._known.features[rows]
        noise = torch.randn(chosen.shape, generator=chance) * (length / chosen.shape[2] ** 0.5)
        return PartFeatures(normalize(chosen + noise, dim=-1), self._known.visibility[rows])


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of several runs after one that does not count."""
    action()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


def once(action: Callable[[], object]) -> float:
    """How long something takes that is done only once."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def bandwidth() -> float:
    """Bytes a second that both cores read."""
    numbers = torch.zeros(1 << 28, dtype=torch.int32)
    return numbers.nbytes / seconds(numbers.max)


def flat(crowd: Crowd) -> tuple[float, float, float]:
    """Seconds of FAISS for one query and for a batch, and of the batch's bare matrix product in float32."""
    index = faiss.IndexFlatIP(PARTS * DIMENSIONS)
    for people in crowd.batches():
        index.add(people.features.flatten(1).numpy())
    queries = crowd.queries.features.flatten(1).numpy()
    stored = faiss.rev_swig_ptr(index.get_xb(), crowd.count * PARTS * DIMENSIONS)
    vectors, rows = torch.from_numpy(stored.reshape(crowd.count, -1)), torch.from_numpy(queries)
    return (
        seconds(lambda: index.search(queries[:1], 10)),
        seconds(lambda: index.search(queries, 10), repeats=1),
        seconds(lambda: [rows @ some.T for some in vectors.split(8192)], repeats=2),
    )


def filled(folder: Path, crowd: Crowd) -> tuple[Gallery, float]:
    """A gallery of them all, and how many were added in a second."""
    gallery = Gallery.create(folder, "0" * 64, memory=2 * crowd.count * BYTES)
    took = 0.0
    for people in crowd.batches():
        names = [f"{number}.jpg" for number in range(len(people))]
        took += once(lambda people=people, names=names: gallery.add(people, names, cameras=[1] * len(people)))
    return gallery, crowd.count / took


def warmed(folder: Path) -> None:
    """Search once in a small gallery: what libraries keep for themselves is not the people's."""
    small = Crowd(5000, [])
    filled(folder, small)[0].search(small.queries)


def on_disk(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measured(crowd: Crowd, folder: Path) -> list[Row]:
    """Everything, as rows of the table."""
    speed = bandwidth()
    faiss_one, faiss_many, product = flat(crowd)
    warmed(folder / "small")
    gallery, rate = filled(folder / "gallery", crowd)
    one, many = crowd.queries[:1], crowd.queries
    gc.collect()
    before = resident()
    first = once(lambda: gallery.search(one))
    pruned = seconds(lambda: gallery.search(one)), seconds(lambda: gallery.search(many), repeats=3)
    gc.collect()
    memory = resident() - before
    held = gallery._reader.held  # no door of the gallery leaves pruning out
    asked = [
        Question(PartFeatures(at_unit_length(each), each.visibility), (0, 1, 2, 3), 10, "euclidean", "common")
        for each in (one, many)
    ]
    plain = [seconds(lambda each=each: held.nearest(each, pruned=False), repeats=1) for each in asked]
    same = np.array_equal(held.nearest(asked[1]).id, held.nearest(asked[1], pruned=False).id)
    assert same, "pruning changed an answer"
    gallery.add(crowd.queries[:1], ["late.jpg"])
    after = once(lambda: gallery.search(one))
    bare = crowd.count * BYTES / speed
    size = f"{crowd.count:,} people"
    return [
        (f"one query, {size}", _time(pruned[0]), "FAISS flat", _time(faiss_one), _ratio(pruned[0], faiss_one)),
        ("", "", f"bare memory, {speed / 1e9:.0f} GB/s", _time(bare), _ratio(pruned[0], bare)),
        ("the same without pruning", _time(plain[0]), "FAISS flat", _time(faiss_one), _ratio(plain[0], faiss_one)),
        (f"batch of {BATCH}", _time(pruned[1]), "FAISS flat", _time(faiss_many), _ratio(pruned[1], faiss_many)),
        ("", "", "bare matrix product", _time(product), _ratio(pruned[1], product)),
        ("the same without pruning", _time(plain[1]), "FAISS flat", _time(faiss_many), _ratio(plain[1], faiss_many)),
        ("first search: read and prepared", _time(first), "", "", ""),
        ("search after one more was added", _time(after), "the same before", _time(pruned[0]), ""),
        (
            "resident memory",
            f"{memory / 1e6:,.0f} MB",
            "the float16 vectors",
            f"{crowd.count * BYTES / 1e6:,.0f} MB",
            f"{memory / (crowd.count * BYTES):.2f} (aim: 1.2)",
        ),
        ("on disk", f"{on_disk(gallery.path) / crowd.count:,.0f} bytes a person", "", "", ""),
        ("added", f"{rate:,.0f} a second", "aim", "20,000 a second", ""),
    ]


def _time(took: float) -> str:
    return f"{1000 * took:.1f} ms" if took < 1 else f"{took:.2f} s"


def _ratio(ours: float, other: float) -> str:
    return f"{ours / other:.3f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--embedded", type=Path, nargs="*", default=[], help="photos embedded by hpnet, and queries")
    options = parser.parse_args()
    crowd = Crowd(options.people, options.embedded)
    what = "real embeddings, repeated with noise" if options.embedded else "drawn people"
    title = f"{what}, {PARTS} x {DIMENSIONS}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    table = Table(title=f"{title}, FAISS {faiss.__version__}")
    for name in ("what", "took", "beside", "took", "ratio"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(crowd, Path(folder)):
            table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
