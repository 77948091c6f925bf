"""Pictures for people: colours where the parts are, every text escaped, one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hpnet.parts import PARTS, Part
from hpnet.visualize import (
    VERDICT_COLOURS,
    ReportMatch,
    ReportQuery,
    ReportTable,
    contact_sheet,
    overlay,
    ranked_sheet,
    write_report,
)


def photo(height: int = 64, width: int = 32, grey: int = 100) -> Tensor:
    return torch.full((3, height, width), grey, dtype=torch.uint8)


def bands(height: int = 32, width: int = 16) -> Tensor:
    """A part map: background on top, then the parts in their order."""
    return (torch.arange(height) * 5 // height).to(torch.uint8)[:, None].expand(height, width).contiguous()


# Overlay


@given(alpha=st.floats(0, 1), grey=st.integers(0, 255), label=st.integers(0, 4))
def test_overlay_mixes_photo_and_colour(alpha: float, grey: int, label: int) -> None:
    part_map = torch.full((4, 2), label, dtype=torch.uint8)
    mixed = overlay(photo(8, 4, grey), part_map, alpha)
    colour = (grey, grey, grey) if label == 0 else PARTS[label - 1].colour
    expected = [(1 - alpha) * grey + alpha * channel for channel in colour]
    assert (mixed.double() - torch.tensor(expected)[:, None, None]).abs().max() <= 0.501
    assert mixed.dtype == torch.uint8


def test_overlay_fits_the_map_to_the_photo() -> None:
    shown = overlay(photo(50, 20), bands(5, 2), alpha=1.0)
    for label in range(5):
        colour = (100, 100, 100) if label == 0 else PARTS[label - 1].colour
        band = shown[:, 10 * label : 10 * label + 10]
        assert torch.equal(band, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 10, 20))


def test_overlay_leaves_its_input_alone() -> None:
    before = photo()
    overlay(before, bands())
    assert torch.equal(before, photo())


def test_overlay_refuses_what_it_cannot_show() -> None:
    with pytest.raises(ValueError, match=r"0\.\.4, not 7"):
        overlay(photo(), torch.full((2, 2), 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="alpha"):
        overlay(photo(), bands(), alpha=1.5)


# Sheets


def test_contact_sheet_shows_photos_in_rows_and_frames_them() -> None:
    greys = [10, 60, 110, 160, 210]
    frames = [None, (255, 0, 0), None, None, (0, 0, 255)]
    sheet = contact_sheet([photo(grey=grey) for grey in greys], 3, frames=frames, size=(64, 32))
    assert sheet.size == (3 * 48, 2 * 80)
    for index, grey in enumerate(greys):
        middle = (48 * (index % 3) + 24, 80 * (index // 3) + 40)
        assert sheet.getpixel(middle) == (grey,) * 3
        beside = sheet.getpixel((middle[0] - 16 - 2, middle[1]))
        assert beside == (frames[index] or (255, 255, 255))
    assert sheet.getpixel((48 * 2 + 24, 80 + 40)) == (255, 255, 255)


def test_contact_sheet_keeps_the_shape_of_photos() -> None:
    sheet = contact_sheet([photo(20, 40, grey=0)], 1, size=(64, 32))
    dark = [(x, y) for x in range(48) for y in range(80) if sheet.getpixel((x, y)) == (0, 0, 0)]
    assert len(dark) == 32 * 16
    assert min(y for _, y in dark) == 8 + 24


def test_captions_stay_in_their_cell() -> None:
    plain = contact_sheet([photo(), photo()], 2, captions=["", ""], size=(64, 32))
    long = contact_sheet([photo(), photo()], 2, captions=["a very long caption indeed", ""], size=(64, 32))
    assert plain.size == long.size == (96, 94)
    changed = [(x, y) for x in range(96) for y in range(94) if plain.getpixel((x, y)) != long.getpixel((x, y))]
    assert changed
    assert all(8 <= x <= 41 and y >= 72 for x, y in changed)


def test_sheets_refuse_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="captions: 1 given for 2 photos"):
        contact_sheet([photo(), photo()], 2, captions=["one"])
    with pytest.raises(ValueError, match="frames: 3 given"):
        contact_sheet([photo(), photo()], 2, frames=[None] * 3)
    for photos, columns in (([], 2), ([photo()], 0)):
        with pytest.raises(ValueError, match="needs a photo and a column"):
            contact_sheet(photos, columns)
    with pytest.raises(ValueError, match="2 matches need as many"):
        ranked_sheet(photo(), [photo(), photo()], [True])


def test_ranked_sheet_frames_say_right_wrong_unknown() -> None:
    sheet = ranked_sheet(photo(), [photo()] * 3, [True, False, None], ["0.1", "0.2", "0.3"], size=(64, 32))
    colours = [sheet.getpixel((48 * column + 24 - 18, 40)) for column in range(4)]
    assert colours == [(255, 255, 255), *(VERDICT_COLOURS[said] for said in ("right", "wrong", "unknown"))]
    assert ranked_sheet(photo(), [], []).size[0] > 0


# The report


class Page(HTMLParser):
    """What stands in a page: elements with their attributes, the text, and whether every element is closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def having(self, style: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if style in (attributes.get("class") or "").split()]


def match(**changes: object) -> ReportMatch:
    given: dict[str, object] = {
        "title": "0002_c2.jpg",
        "distance": 0.75,
        "parts": (Part.HEAD, Part.TORSO),
        "photo": photo(),
        "part_map": bands(),
        "part_distances": {Part.HEAD: 0.5, Part.TORSO: 1.0},
        "right": True,
    }
    return ReportMatch(**(given | changes))  # type: ignore[arg-type]


def query(*matches: ReportMatch, visible: tuple[Part, ...] = (Part.HEAD, Part.TORSO, Part.UPPER_LEGS)) -> ReportQuery:
    return ReportQuery("0001_c1.jpg", photo(), visible, matches, bands())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "report.html"


def test_report_needs_nothing_but_itself(path: Path) -> None:
    write_report(path, "Title", [query(match())], [ReportTable("T", ["a"], [["1"]])], ["A note."])
    page = Page(path)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 4
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_report_shows_photo_and_part_map(path: Path) -> None:
    write_report(path, "Title", [query()])
    sources = [attributes["src"] or "" for tag, attributes in Page(path).elements if tag == "img"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert [picture.size for picture in pictures] == [(32, 64)] * 2
    plain, mapped = (picture.convert("RGB").getpixel((16, 30)) for picture in pictures)
    assert all(abs(channel - 100) < 6 for channel in plain)
    torso = [0.4 * 100 + 0.6 * channel for channel in Part.TORSO.colour]
    assert all(abs(channel - expected) < 12 for channel, expected in zip(mapped, torso, strict=True))


def test_large_photos_are_made_smaller(path: Path) -> None:
    write_report(path, "Title", [ReportQuery("q", torch.randint(256, (3, 3000, 1500), dtype=torch.uint8), (), [])])
    assert path.stat().st_size < 200_000


def test_report_escapes_every_text(path: Path) -> None:
    evil = """<b onclick="x">&'"""
    asked = ReportQuery(evil, photo(), (), [match(title=evil), match(title=evil, photo=None)], bands(), note=evil)
    write_report(path, evil, [asked], [ReportTable(evil, [evil, "b"], [[evil, evil]], note=evil)], [evil])
    page = Page(path)
    assert "b" not in {tag for tag, attributes in page.elements if attributes}
    assert "<b onclick" not in page.source
    assert page.text.count(evil) == 12
    alternatives = [attributes.get("alt") for tag, attributes in page.elements if tag == "img"]
    assert alternatives == [evil, f"part map of {evil}"] * 2


def test_report_says_what_is_hidden_and_what_was_compared(path: Path) -> None:
    write_report(path, "Title", [query(match(parts=(Part.HEAD,), part_distances={Part.HEAD: 0.5}))])
    page = Page(path)
    assert "lower legs and feet: hidden" in page.text
    assert "head: hidden" not in page.text
    assert len(page.having("hidden")) == 1 + 1  # the legend's, the query's
    # The torso is in the query but not in the match; upper legs likewise; lower legs are hidden in the query itself.
    lines = [line for line in page.text.splitlines() if line in ("hidden here", "hidden in query")]
    assert lines == ["hidden here", "hidden here", "hidden in query"]


def test_bars_are_as_long_as_distances(path: Path) -> None:
    far = match(part_distances={Part.HEAD: 2.0, Part.TORSO: 0.25}, right=False)
    write_report(path, "Title", [query(match(), far)])
    page = Page(path)
    shares = [attributes["style"] for tag, attributes in page.elements if tag == "i"]
    assert shares == [f"--share:{share:.3f}" for share in (0.25, 0.5, 1, 0.125)]
    for text in ("0.750", "0.50", "1.00", "2.00", "0.25"):
        assert text in page.text.split("\n")


def test_bars_of_distance_zero(path: Path) -> None:
    write_report(path, "Title", [query(match(part_distances={Part.HEAD: 0.0}))])
    page = Page(path)
    assert [attributes["style"] for tag, attributes in page.elements if tag == "i"] == ["--share:0.000"]
    assert "compared" in page.text.split("\n")  # the torso, whose distance was not given


def test_verdicts_are_framed_and_worded(path: Path) -> None:
    write_report(path, "Title", [query(match(right=True), match(right=False), match(right=None))])
    page = Page(path)
    assert [item["class"] for item in page.having("match")] == ["match right", "match wrong", "match unknown"]
    assert page.text.count("✓ right") == page.text.count("✗ wrong") == 1
    assert "another person" in page.text
    write_report(path, "Title", [query(match(right=None))])
    assert "another person" not in Page(path).text, "a legend for frames that do not occur"


def test_a_query_without_matches_says_why(path: Path) -> None:
    write_report(path, "Title", [query()])
    assert "no one in the gallery shows a part in common" in Page(path).text


def test_a_match_whose_file_is_gone(path: Path) -> None:
    write_report(path, "Title", [query(match(photo=None))])
    assert "photo not found" in Page(path).text


def test_tables_keep_their_cells(path: Path) -> None:
    table = ReportTable(
        "Scores", ["Distance", "R1"], [["common", "91.2"], ["ignore", "70.0"]], "Percent.", emphasised=0
    )
    write_report(path, "Title", [], [table])
    page = Page(path)
    assert [text for text in page.text.split("\n") if text in ("91.2", "70.0", "common", "ignore")] == [
        "common",
        "91.2",
        "ignore",
        "70.0",
    ]
    assert len(page.having("strong")) == 1
    with pytest.raises(ValueError, match="table 'Scores': row 1 has 1 cells for 2 columns"):
        ReportTable("Scores", ["a", "b"], [["1", "2"], ["1"]])


def test_a_report_that_fails_leaves_the_old_one(path: Path) -> None:
    write_report(path, "Old", [])
    with pytest.raises(ValueError, match="fold other labels"):
        write_report(path, "New", [query(match(part_map=torch.full((2, 2), 9, dtype=torch.uint8)))])
    assert "Old" in Page(path).text
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
