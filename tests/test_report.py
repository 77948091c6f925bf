"""What the page shows must be what the network saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hpnet.data.photos import PhotoError, write_picture
from hpnet.data.synthetic import draw
from hpnet.embed import Embedder
from hpnet.model import HPNet, ModelConfig
from hpnet.parts import PARTS, Part, PartFeatures
from hpnet.report import Answer, part_distances, report_query, seen_parts
from hpnet.visualize import contact_sheet

SIZE = (64, 32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{identity}.png" for identity in range(3)]
    for identity, path in enumerate(paths):
        write_picture(path, contact_sheet([draw(identity, 1, 0, size=SIZE).photo], 1, size=SIZE))
    return paths


def embedder(*, baseline: bool = False, threshold: float = 0.001) -> Embedder:
    torch.manual_seed(0)
    return Embedder(HPNet(ModelConfig("resnet18", "compact", baseline=baseline, size=SIZE, threshold=threshold)))


def test_distances_and_parts_are_the_networks(photos: list[Path]) -> None:
    network = embedder()
    answers = [Answer(photos[1], "one", 0.5, right=False), Answer(photos[0], "itself", 0.0, right=True)]
    page = report_query(network, photos[0], answers, title="query")
    features = network([photos[0], photos[1]])
    assert page.visible == PARTS
    assert page.matches[0].part_distances == pytest.approx(
        {part: float((features.features[0, part] - features.features[1, part]).norm()) for part in PARTS}, abs=1e-5
    )
    assert page.matches[1].part_distances == pytest.approx(dict.fromkeys(PARTS, 0.0), abs=1e-5)
    assert [match.right for match in page.matches] == [False, True]
    assert page.part_map is not None
    assert page.part_map.shape == network.model.config.cells


def test_bars_are_of_what_was_compared(photos: list[Path]) -> None:
    """The gallery's template, not its best view; the chosen parts alone; in the metric's unit."""
    network = embedder()
    query, other = network([photos[0]]), network([photos[2]])
    answer = Answer(photos[1], "template", 0.5, stored=other, parts=(Part.TORSO, Part.HEAD))
    [match] = report_query(network, photos[0], [answer], title="query").matches
    apart = (query.features[0] - other.features[0]).norm(dim=-1)
    assert match.parts == (Part.TORSO, Part.HEAD)
    assert match.part_distances == pytest.approx({part: float(apart[part]) for part in match.parts}, abs=1e-5)
    [match] = report_query(network, photos[0], [answer], title="query", metric="cosine").matches
    cosine = 1 - (query.features[0] * other.features[0]).sum(-1)
    assert match.part_distances == pytest.approx({part: float(cosine[part]) for part in match.parts}, abs=1e-5)


def test_a_photo_that_is_gone_leaves_a_gap(photos: list[Path], tmp_path: Path) -> None:
    answers = [Answer(tmp_path / "gone.png", "gone", 0.1), Answer(photos[2], "there", 0.2)]
    page = report_query(embedder(), photos[0], answers, title="query")
    assert page.matches[0].photo is None
    assert "gone" in page.matches[0].title
    assert page.matches[1].photo is not None
    with pytest.raises(PhotoError, match="gone"):
        report_query(embedder(), tmp_path / "gone.png", answers, title="query")


def test_a_view_of_footage_is_shown_as_the_photo_that_it_is(photos: list[Path], tmp_path: Path) -> None:
    frame, network = tmp_path / "000001.png", embedder()
    view = Image.open(photos[1]).convert("RGB")
    wide = Image.new("RGB", (200, 150))
    wide.paste(view, (20, 10))
    wide.save(frame)
    address = f"{frame}#xywh=20,10,{view.width},{view.height}"
    page = report_query(network, photos[0], [Answer(Path(address), "seen", 0.5)], title="query")
    expected = report_query(network, photos[0], [Answer(photos[1], "seen", 0.5)], title="query").matches[0]
    assert page.matches[0].photo is not None
    assert expected.photo is not None
    assert torch.equal(page.matches[0].photo, expected.photo)
    assert page.matches[0].part_distances == pytest.approx(expected.part_distances, abs=1e-5)


def test_the_baseline_sees_the_whole(photos: list[Path]) -> None:
    page = report_query(embedder(baseline=True), photos[0], [Answer(photos[1], "other", 0.5)], title="query")
    assert page.part_map is None
    assert page.matches[0].part_distances == {}


def test_only_common_parts_have_a_distance() -> None:
    features = torch.nn.functional.normalize(torch.rand(2, 4, 3), dim=-1)
    visibility = torch.tensor([[True, True, False, False], [False, True, True, False]])
    people = PartFeatures(features, visibility)
    assert set(part_distances(people[0], people[1])) == {Part.TORSO}
    assert seen_parts(people[0]) == (Part.HEAD, Part.TORSO)
