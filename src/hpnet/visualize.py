"""Pictures for people: a part map over a photo, a query beside its matches, and the static HTML report.

In: photos and part maps as uint8 tensors, and what was found. Out: a tensor, a Pillow picture, or one HTML file that
holds its pictures in itself and needs neither network nor script. Nothing here knows a model or reads a photo.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hpnet.files import written_whole
from hpnet.parts import PARTS, Part

Colour = tuple[int, int, int]
Verdict = Literal["right", "wrong", "unknown"]

# A word says the same wherever they are used: one man in twelve confuses red and green.
VERDICT_COLOURS: Final[dict[Verdict, Colour]] = {
    "right": (21, 128, 61),
    "wrong": (200, 38, 38),
    "unknown": (128, 134, 145),
}
_SIGNS: Final[dict[Verdict, str]] = {"right": "✓ right", "wrong": "✗ wrong", "unknown": ""}
_PAPER: Final = (255, 255, 255)
_INK: Final = (40, 44, 52)
_GAP: Final = 8
_REPORT_ALPHA: Final = 0.6  # the photo itself stands beside it
_FRAME: Final = 4
_LINE: Final = 14  # height of a caption's line, pixels
_PICTURE_HEIGHT: Final = 320  # of pictures in a report: sharp on dense screens at half that height, still small files


def overlay(
    photo: UInt8[Tensor, "3 H W"], part_map: UInt8[Tensor, "h w"], alpha: float = 0.5
) -> UInt8[Tensor, "3 H W"]:
    """Lay a part map over a photo, in the parts' colours.

    Args:
        photo: RGB.
        part_map: 0 background, 1..4 parts; brought to the photo's size by nearest neighbour.
        alpha: 0 shows the photo alone, 1 the colours alone where there is a part; background always shows the photo.

    Raises:
        ValueError: alpha is outside 0..1, or a label is none of the parts'.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, not {alpha}")
    if part_map.numel() and int(part_map.max()) > len(PARTS):
        raise ValueError(f"a part map holds 0..{len(PARTS)}, not {int(part_map.max())}; fold other labels first")
    height, width = photo.shape[1:]
    rows, columns = (torch.arange(out) * size // out for out, size in zip((height, width), part_map.shape, strict=True))
    labels = part_map.cpu()[rows][:, columns].long()
    palette = torch.tensor([(0, 0, 0), *(part.colour for part in PARTS)], dtype=torch.float32)
    share = (labels > 0) * alpha
    mixed = photo.cpu() * (1 - share) + palette[labels].permute(2, 0, 1) * share
    return mixed.round().to(torch.uint8)


def contact_sheet(
    photos: Sequence[UInt8[Tensor, "3 _ _"]],
    columns: int,
    captions: Sequence[str] | None = None,
    frames: Sequence[Colour | None] | None = None,
    size: tuple[int, int] = (256, 128),
) -> Image.Image:
    """Many photos on one sheet, row by row.

    Args:
        photos: RGB; each is fitted into its cell, keeping its shape.
        columns: cells in a row.
        captions: a text below each photo; what is too long is cut.
        frames: a colour around each photo, or None for no frame.
        size: (height, width) of a cell in pixels.

    Raises:
        ValueError: no photo, no column, or lists of different length.
    """
    if not photos or columns < 1:
        raise ValueError(f"a sheet needs a photo and a column, not {len(photos)} and {columns}")
    for name, values in (("captions", captions), ("frames", frames)):
        if values is not None and len(values) != len(photos):
            raise ValueError(f"{name}: {len(values)} given for {len(photos)} photos")
    columns = min(columns, len(photos))
    step = (size[0] + 2 * _GAP + (_LINE if captions else 0), size[1] + 2 * _GAP)
    sheet = Image.new("RGB", (columns * step[1], -(-len(photos) // columns) * step[0]), _PAPER)
    for index, photo in enumerate(photos):
        row, column = divmod(index, columns)
        corner = (row * step[0] + _GAP, column * step[1] + _GAP)
        _place(sheet, photo, corner, size, frames[index] if frames else None)
        if captions:
            _write(sheet, captions[index], (corner[0] + size[0] + _FRAME, corner[1]), size[1])
    return sheet


def ranked_sheet(
    query: UInt8[Tensor, "3 _ _"],
    matches: Sequence[UInt8[Tensor, "3 _ _"]],
    right: Sequence[bool | None],
    captions: Sequence[str] | None = None,
    size: tuple[int, int] = (256, 128),
) -> Image.Image:
    """A query, and its matches to the right of it, nearest first.

    Args:
        query: RGB.
        matches: RGB.
        right: of each match, whether it is the same person (green frame), another (red) or unknown (grey).
        captions: a text below each match, after its rank and a word that says what the frame says.
        size: (height, width) of a cell in pixels.

    Raises:
        ValueError: lists of different length.
    """
    if not len(matches) == len(right) == len(matches if captions is None else captions):
        raise ValueError(f"{len(matches)} matches need as many verdicts and captions")
    verdicts = [verdict(each) for each in right]
    words = [f"{rank} {said}" if said != "unknown" else str(rank) for rank, said in enumerate(verdicts, start=1)]
    return contact_sheet(
        [query, *matches],
        columns=len(matches) + 1,
        captions=[
            "query",
            *(f"{word} {text}" for word, text in zip(words, captions or [""] * len(words), strict=True)),
        ],
        frames=[None, *(VERDICT_COLOURS[said] for said in verdicts)],
        size=size,
    )


def verdict(right: bool | None) -> Verdict:
    """The word for a match that is right, wrong, or not known to be either."""
    return "unknown" if right is None else "right" if right else "wrong"


def as_percent(probability: float) -> str:
    """A probability as people read it; never 0 and never 100 %, for nothing is sure."""
    if probability < 0.001 or probability > 0.999:
        return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
    return f"{100 * probability:.1f} %"


@dataclass(frozen=True, eq=False)
class ReportMatch:
    """A match, as the report shows it.

    Attributes:
        title: who or which file.
        distance: to the query.
        parts: those compared.
        photo: RGB; None if the file is gone.
        part_map: of this photo; None shows the photo alone.
        part_distances: distance of each part compared, shown as bars.
        right: the same person as the query, or another; None if unknown.
        probability: that it is the same person; None if that is not known.
    """

    title: str
    distance: float
    parts: tuple[Part, ...]
    photo: UInt8[Tensor, "3 H W"] | None = None
    part_map: UInt8[Tensor, "h w"] | None = None
    part_distances: Mapping[Part, float] = field(default_factory=dict)
    right: bool | None = None
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class ReportQuery:
    """A query and its matches, nearest first, as the report shows them.

    Attributes:
        title: who or which file.
        photo: RGB.
        visible: the parts seen in it; the others are hidden.
        matches: nearest first.
        part_map: of the photo; None shows the photo alone.
        note: a line of text below the title.
    """

    title: str
    photo: UInt8[Tensor, "3 H W"]
    visible: tuple[Part, ...]
    matches: Sequence[ReportMatch]
    part_map: UInt8[Tensor, "h w"] | None = None
    note: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table of scores.

    Attributes:
        title: above it.
        columns: the heads; the first column names the rows.
        rows: texts, as many in each as there are heads.
        note: below it.
        emphasised: the number of the row to set off.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    emphasised: int | None = None

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )


def write_report(
    path: Path,
    title: str,
    queries: Sequence[ReportQuery],
    tables: Sequence[ReportTable] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write one HTML file that a person can read: scores, and per query what was found and by which parts.

    The file holds its pictures in itself, runs no script and loads nothing, so that it can be kept, sent and opened
    anywhere. It is written beside and then renamed.

    Args:
        path: the file; its folder is made.
        title: at the top.
        queries: in the order shown.
        tables: scores, above the queries.
        notes: paragraphs below the title.
    """
    body = [
        f"<header><h1>{escape(title)}</h1>",
        *(f'<p class="lead">{escape(note)}</p>' for note in notes),
        "</header>",
        *([f'<div class="tables">{"".join(map(_table, tables))}</div>'] if tables else []),
        *([_legend(queries)] if queries else []),
        *(_query(number, query) for number, query in enumerate(queries, start=1)),
    ]
    page = _PAGE.format(title=escape(title), style=_STYLE + _part_style(), body="\n".join(body))
    with written_whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def _place(
    sheet: Image.Image, photo: Tensor, corner: tuple[int, int], size: tuple[int, int], frame: Colour | None
) -> None:
    """Put a photo into the middle of a cell, as large as it fits."""
    fitted = _fitted(photo, size)
    top, left = corner[0] + (size[0] - fitted.height) // 2, corner[1] + (size[1] - fitted.width) // 2
    if frame is not None:
        box = (left - _FRAME, top - _FRAME, left + fitted.width + _FRAME - 1, top + fitted.height + _FRAME - 1)
        ImageDraw.Draw(sheet).rectangle(box, fill=frame)
    sheet.paste(fitted, (left, top))


def _fitted(photo: UInt8[Tensor, "3 H W"], size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(photo.cpu().permute(1, 2, 0).contiguous().numpy())
    factor = min(size[0] / picture.height, size[1] / picture.width)
    shape = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(shape, Image.Resampling.LANCZOS)


def _write(sheet: Image.Image, text: str, corner: tuple[int, int], width: int) -> None:
    font = ImageFont.load_default(_LINE - 3)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    ImageDraw.Draw(sheet).text((corner[1], corner[0]), text, fill=_INK, font=font)


def _data_uri(photo: UInt8[Tensor, "3 H W"]) -> str:
    """A photo as text that stands in the page, not larger than it is shown."""
    size = (min(photo.shape[1], _PICTURE_HEIGHT), 2 * _PICTURE_HEIGHT)
    content = io.BytesIO()
    _fitted(photo, size).save(content, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _pictures(photo: Tensor | None, part_map: Tensor | None, of: str) -> str:
    if photo is None:
        return '<div class="pictures"><div class="gone">photo not found</div></div>'
    shown = [(photo, of)] + (
        [(overlay(photo, part_map, _REPORT_ALPHA), f"part map of {of}")] if part_map is not None else []
    )
    images = "".join(f'<img src="{_data_uri(each)}" alt="{escape(text)}">' for each, text in shown)
    return f'<div class="pictures">{images}</div>'


def _table(table: ReportTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr{' class=strong' if number == table.emphasised else ''}>"
        + "".join(
            f"<{'th' if not place else 'td'}>{escape(cell)}</{'th' if not place else 'td'}>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(table.rows)
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section class="card"><h2>{escape(table.title)}</h2><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _legend(queries: Sequence[ReportQuery]) -> str:
    parts = "".join(_chip(part, "seen") for part in PARTS)
    judged = any(match.right is not None for query in queries for match in query.matches)
    frames = '<span class="key right">✓ same person</span><span class="key wrong">✗ another person</span>'
    return (
        f'<div class="legend"><span>Parts</span>{parts}<span class="chip hidden">hidden</span>'
        f"{frames if judged else ''}<span>Bars: distance of each part compared; the shorter, the more alike.</span>"
        "</div>"
    )


def _chip(part: Part, state: Literal["seen", "hidden"]) -> str:
    said = "" if state == "seen" else ": hidden"
    return f'<span class="chip {state} part-{part.value}">{escape(part.title)}{said}</span>'


def _query(number: int, query: ReportQuery) -> str:
    chips = "".join(_chip(part, "seen" if part in query.visible else "hidden") for part in PARTS)
    scale = max((value for match in query.matches for value in match.part_distances.values()), default=0.0)
    matches = "".join(_match(rank, match, query, scale) for rank, match in enumerate(query.matches, start=1))
    empty = '<p class="note">Nobody to show: no one in the gallery shows a part in common with this query.</p>'
    note = f'<p class="note">{escape(query.note)}</p>' if query.note else ""
    return (
        f'<section class="card query" id="query-{number}"><div class="asked"><h2>{escape(query.title)}</h2>{note}'
        f'{_pictures(query.photo, query.part_map, query.title)}<div class="chips">{chips}</div></div>'
        f'<ol class="matches">{matches}</ol>{"" if matches else empty}</section>'
    )


def _match(rank: int, match: ReportMatch, query: ReportQuery, scale: float) -> str:
    said = verdict(match.right)
    sign = f'<span class="said">{_SIGNS[said]}</span>' if _SIGNS[said] else ""
    bars = "".join(_bar(part, match, query, scale) for part in PARTS)
    chance = (
        ""
        if match.probability is None
        else f'<span class="chance">P(same) {escape(as_percent(match.probability))}</span>'
    )
    return (
        f'<li class="match {said}"><div class="top"><span class="rank">{rank}</span>'
        f'<span class="distance">{match.distance:.3f}</span>{chance}{sign}</div>'
        f"{_pictures(match.photo, match.part_map, match.title)}"
        f'<div class="who" title="{escape(match.title)}">{escape(match.title)}</div><dl class="bars">{bars}</dl></li>'
    )


def _bar(part: Part, match: ReportMatch, query: ReportQuery, scale: float) -> str:
    """One line: the part, and how far apart it is or why it was not compared."""
    name = f'<dt class="part-{part.value}">{escape(part.title)}</dt>'
    if part not in match.parts:
        return f'{name}<dd class="not">{"hidden in query" if part not in query.visible else "hidden here"}</dd>'
    if part not in match.part_distances:
        return f'{name}<dd class="not">compared</dd>'
    value = match.part_distances[part]
    share = value / scale if scale > 0 else 0
    return f'{name}<dd><i class="part-{part.value}" style="--share:{share:.3f}"></i><b>{value:.2f}</b></dd>'


def _part_style() -> str:
    return "".join(f".part-{part.value}{{--part:rgb{part.colour}}}" for part in PARTS)


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE: Final = """
:root{--ground:#f4f5f7;--card:#fff;--ink:#1c2330;--soft:#5b6472;--line:#e1e4ea;--track:#eceef2;
--right:#15803d;--wrong:#c82626;--unknown:#b3b9c4}
@media(prefers-color-scheme:dark){:root{--ground:#12151b;--card:#1b2029;--ink:#e8ebf0;--soft:#9aa4b4;--line:#2c333f;
--track:#2a313d;--right:#3fb868;--wrong:#f06a6a;--unknown:#596273}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1340px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.02em;margin:0 0 8px}
h2{font-size:17px;line-height:1.3;margin:0 0 4px;overflow-wrap:anywhere}
.lead{color:var(--soft);margin:0 0 6px;max-width:76ch}
.note{color:var(--soft);font-size:13px;margin:2px 0 8px;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px 20px;margin:18px 0}
.tables{display:flex;flex-wrap:wrap;gap:18px;margin:22px 0}
.tables .card{margin:0;flex:1 1 380px;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line);font-weight:400}
thead th{color:var(--soft);font-size:13px}
th:first-child{text-align:left;padding-left:0;white-space:normal}
tbody tr:last-child>*{border-bottom:0}
tr.strong>*{font-weight:650}
.legend{display:flex;flex-wrap:wrap;gap:8px 10px;align-items:center;color:var(--soft);font-size:13px;margin:18px 2px}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin-top:10px}
.chip{display:inline-flex;align-items:center;gap:6px;border:1px solid var(--line);border-radius:99px;padding:2px 10px;
font-size:13px;color:var(--ink);background:var(--card);white-space:nowrap}
.chip::before{content:"";width:10px;height:10px;border-radius:50%;background:var(--part,transparent)}
.chip.hidden{color:var(--soft);border-style:dashed;}
.chip.hidden::before{background:none;border:1.5px dashed var(--soft)}
.key{border-left:4px solid;padding-left:7px}
.key.right{border-color:var(--right)}.key.wrong{border-color:var(--wrong)}
.query{display:grid;grid-template-columns:250px minmax(0,1fr);gap:24px}
.pictures{display:flex;gap:6px;align-items:flex-start}
.pictures img{display:block;width:calc(50% - 3px);max-height:190px;object-fit:contain;
object-position:left;border-radius:6px}
.asked{position:sticky;top:16px;align-self:start;min-width:0}
.asked .pictures{margin-top:10px}
.asked .pictures img{max-height:260px}
.gone{height:160px;width:80px;border:1px dashed var(--unknown);border-radius:6px;color:var(--soft);font-size:12px;
display:grid;place-items:center;text-align:center;padding:6px}
.matches{list-style:none;margin:0;padding:0;display:grid;gap:14px;
grid-template-columns:repeat(auto-fill,minmax(178px,1fr));align-content:start}
.match{border:1px solid var(--line);border-top:5px solid var(--unknown);border-radius:10px;
padding:8px 12px 12px;min-width:0}
.match.right{border-color:var(--right)}.match.wrong{border-color:var(--wrong)}
.top{display:flex;align-items:baseline;gap:8px;margin-bottom:6px;font-variant-numeric:tabular-nums}
.rank{font-weight:700;font-size:17px}.distance,.chance{color:var(--soft)}
.said{margin-left:auto;font-size:13px;font-weight:600;color:var(--unknown)}
.right .said{color:var(--right)}.wrong .said{color:var(--wrong)}
.who{font-size:13px;margin:8px 0 6px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bars{margin:0;font-size:12px;line-height:1.35;display:grid;gap:2px}
.bars dt{color:var(--soft)}
.bars dt::before{content:"";display:inline-block;width:8px;height:8px;border-radius:50%;
background:var(--part);margin-right:6px}
.bars dd{margin:0 0 4px;display:flex;align-items:center;gap:8px;position:relative;height:14px}
.bars i{display:block;height:8px;border-radius:4px;background:var(--part);min-width:2px;flex:none;
width:calc((100% - 36px)*var(--share))}
.bars b{font-weight:500;font-variant-numeric:tabular-nums}
.bars .not{color:var(--soft);font-style:italic}
@media(max-width:720px){main{padding:20px 12px 40px}.query{grid-template-columns:1fr;gap:16px}.card{padding:14px}
.matches{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}.match{padding:6px 8px 10px}
.asked{position:static}.asked .pictures{max-width:260px}h1{font-size:23px}
th,td{padding:6px}}
@media print{body{background:#fff}.match,.query,.card{break-inside:avoid}}
"""
