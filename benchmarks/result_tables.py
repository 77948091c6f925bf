"""The blocks of numbers on the pages: what `results/` says, as Markdown.

In: `records.Results`. Out: for each block's name its text. Numbers are percent unless a head says otherwise; a dash
stands for what was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from records import TRIAL, Record, Results, Run, file_hash

from hpnet.evaluation.protocols import PROTOCOLS
from hpnet.parts import PARTS
from hpnet.weights import BUNDLED

SCORES: Final = ("R1", "R5", "R10", "mAP", "mINP")
TEST_SETS: Final = {"market1501-occluded": "occluded copies", "market1501": "Market-1501"}
RANKINGS: Final = {"": "Eq. 1", "-authors": "authors'"}
SETTINGS: Final = {
    f"{test}{suffix}": f"{title}, {ranking}"
    for test, title in TEST_SETS.items()
    for suffix, ranking in RANKINGS.items()
}
# Rows of Table 4: what it calls them, our variant, and the visibility it is searched with (None = the protocol's own).
VARIANTS: Final = {
    "Baseline": ("baseline", None),
    "HPNet, test w/o vis": ("hpnet", "ignore"),
    "HPNet, share Conv5": ("share_conv5", None),
    "HPNet, lambda_tri = 0": ("no_triplet", None),
    "HPNet, lambda_seg^coco = 0": ("no_human", None),
    "HPNet": ("hpnet", None),
}
ORDERINGS: Final = (
    *(("HPNet", other) for other in VARIANTS if other != "HPNet"),
    ("Baseline", "HPNet, test w/o vis"),  # Section 4.4: "Rank-1 even much lower than Baseline"
)
NOT_MEASURED: Final = "-"
NOTHING: Final = "Not measured for these weights."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right; a sentence where there are no rows."""
    body = list(rows)
    if not body:
        return NOTHING
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(scores: Record, names: Sequence[str] = SCORES) -> list[str]:
    """Scores with one decimal, a dash where there is none."""
    return [f"{scores[name]:.1f}" if isinstance(scores.get(name), int | float) else NOT_MEASURED for name in names]


def compact_scores(results: Results) -> str:
    """The compact model on both test sets, by both rankings, and what the authors' weights print."""
    rows = []
    for protocol, title in reversed(SETTINGS.items()):
        if record := results.compact.find(protocol):
            rows.append([f"{title} (`{protocol}`)", *cells(record["scores"])])
    released = PROTOCOLS["market1501"].published["HPNet, released"]
    return table(
        ("percent", *SCORES), [*sorted(rows), ["*the authors' released ResNet-50, Market-1501*", *cells(released)]]
    )


def compact_made(results: Results) -> str:
    """How the compact model came to be, in a sentence."""
    run = results.compact
    record = next(iter(run.scores.values()))
    recipe, training = run.recipe, run.training
    human = f" + {recipe['human_batch']}" if recipe["human_set"] != "off" else ""
    photos = f"{recipe['identities_per_batch'] * recipe['images_per_identity']}{human}"
    initial = str(recipe.get("initial") or "")
    before = f", going on from `{initial}`" if initial.startswith("runs/") else ""
    return (
        f"{training['steps']:,} steps of {photos} photos{before}, {training['minutes']:.0f} minutes "
        f"({training['seconds_per_step']:.2f} s a step, {recipe['precision']}), seed {recipe['seed']}; "
        f"weights sha256 `{file_hash(record)[:16]}`, {_whether_bundled(file_hash(record))}."
    )


def _whether_bundled(sha256: str) -> str:
    bundled = BUNDLED["compact"]
    return "the bundled file" if sha256 == bundled else f"not the bundled file, which is `{bundled[:16]}`"


def _grouped(key: str, head: str) -> Callable[[Results], str]:
    """A block: the compact model's scores on occluded copies by kind, severity or hidden part, under both rankings."""

    def block(results: Results) -> str:
        found = [results.compact.find(f"market1501-occluded{suffix}") for suffix in RANKINGS]
        groups = [record["occlusion"][key] if record else {} for record in found]
        names = next((list(group) for group in groups if group), [])
        heads = (
            head,
            "queries",
            *(f"{name}, {ranking}" for ranking in RANKINGS.values() for name in ("R1", "R5", "mAP")),
        )
        return table(heads, ([name.replace("_", " "), *_group_cells(groups, name)] for name in names))

    return block


def _group_cells(groups: Sequence[Record], name: str) -> list[str]:
    queries = next(group[name]["queries"] for group in groups if name in group)
    return [f"{queries:,}", *(cell for group in groups for cell in cells(group.get(name, {}), ("R1", "R5", "mAP")))]


def common_parts(results: Results) -> str:
    """The compact model's R1 and mAP under Eq. 1 by the most parts that a query shares with a right answer."""
    rows = []
    for test, title in TEST_SETS.items():
        record = results.compact.find(test)
        for parts, scores in (record["by_common_parts"] if record else {}).items():
            rows.append([f"{title}, {parts}", f"{scores['queries']:,}", *cells(scores, ("R1", "R5", "mAP"))])
    return table(("parts in common", "queries", "R1", "R5", "mAP"), rows)


def visibility(results: Results) -> str:
    """How right the compact model's visibility is on occluded copies."""
    record = results.compact.find("market1501-occluded")
    accuracy = record["occlusion"]["visibility"] if record else {}
    names = {"precision": "precision", "recall": "recall of visible", "hidden_recall": "recall of hidden"}
    counts = ("visible", "hidden", "unsure")
    rows = (
        [
            part.replace("_", " "),
            *(f"{accuracy[part][count]:,}" for count in counts),
            *cells(accuracy[part], tuple(names)),
        ]
        for part in (*(part.name.lower() for part in PARTS), "all")
        if part in accuracy
    )
    return table(("part", *counts, *names.values()), rows)


def open_set(results: Results) -> str:
    """How many people the compact model finds while one stranger in a hundred may raise an alarm."""
    rows = []
    for protocol, title in SETTINGS.items():
        record = results.compact.find(protocol) or {}
        alarms = record.get("open_set") or {}
        found = {
            title: (record.get("scores"), alarms.get("by_distance")),
            f"{title.split(',')[0]}, P(same)": (record.get("ranked_by_probability"), alarms.get("by_probability")),
        }
        rows += [
            [name, *cells(scores or {}, ("R1", "mAP")), *cells(outcome, ("tpir", "fpir")), *_queries(outcome)]
            for name, (scores, outcome) in found.items()
            if outcome
        ]
    heads = ("ranked by", "R1", "mAP", "TPIR", "at FPIR", "queries of people in the gallery", "of strangers")
    return table(heads, rows)


def _queries(outcome: Record) -> list[str]:
    return [f"{outcome[name]:,}" for name in ("genuine", "strangers")]


def calibration(results: Results) -> str:
    """How far the compact model's P(same) is off, by the number of common parts."""
    rows = []
    for test, title in TEST_SETS.items():
        record = (results.compact.find(test) or {}).get("calibration") or {}
        groups = {title: record, **{f"{title}, {parts} in common": each for parts, each in _by_parts(record)}}
        for name, each in groups.items():
            if each:
                pairs = (f"{each[kind]:,}" for kind in ("pairs_of_one_person", "pairs_of_two"))
                rows.append([name, *pairs, f"{each['ece']:.1f}", f"{each['brier']:.3f}"])
    heads = ("pairs", "of one person", "of two", "calibration error", "Brier score (0..1)")
    return table(heads, rows)


def _by_parts(record: Record) -> Iterable[tuple[str, Record]]:
    by_parts: Mapping[str, Record] = record.get("by_common_parts", {})
    return by_parts.items()


def ablation(results: Results) -> str:
    """The paper's Table 4 beside ours: R1 / mAP."""
    published = PROTOCOLS["occluded_reid"].published
    rows = []
    for title in VARIANTS:
        paper = f"{published[title]['R1']:.1f} / {published[title]['mAP']:.1f}"
        rows.append([title, paper, *(_pair(results, title, protocol) for protocol in SETTINGS)])
    return table(("R1 / mAP", "paper, Occluded-REID", *SETTINGS.values()), rows)


def _pair(results: Results, title: str, protocol: str) -> str:
    values = {name: by_seed(results, title, protocol, name) for name in ("R1", "mAP")}
    return " / ".join(seeds_cell(each) for each in values.values())


def seeds_cell(values: Mapping[int, float]) -> str:
    """The mean over seeds, and each seed's value where there are several."""
    if not values:
        return NOT_MEASURED
    each = f" ({', '.join(f'{value:.1f}' for value in values.values())})" if len(values) > 1 else ""
    return f"{fmean(values.values()):.1f}{each}"


def by_seed(results: Results, title: str, protocol: str, score: str) -> dict[int, float]:
    """A row of Table 4 as we measured it: one score under one protocol, by training seed."""
    variant, seen = VARIANTS[title]
    runs: Mapping[int, Run] = results.variants().get(variant, {})
    found = {seed: run.find(protocol, seen) for seed, run in sorted(runs.items())}
    return {seed: record["scores"][score] for seed, record in found.items() if record}


def _ablation_on(test: str) -> Callable[[Results], str]:
    """A block: every score of every variant on one test set, under both rankings."""

    def block(results: Results) -> str:
        rows = [
            [title, ranking, *(seeds_cell(by_seed(results, title, f"{test}{suffix}", name)) for name in SCORES)]
            for title in VARIANTS
            for suffix, ranking in RANKINGS.items()
        ]
        return table((TEST_SETS[test], "ranking", *SCORES), rows)

    return block


def differences(results: Results, pair: tuple[str, str], protocol: str, score: str) -> list[float]:
    """First row minus second, for each seed that both were trained with."""
    one, other = (by_seed(results, title, protocol, score) for title in pair)
    return [value - other[seed] for seed, value in one.items() if seed in other]


def verdict(paper: float, ours: Sequence[float]) -> str:
    """Whether a difference has the sign that the paper found: in every seed, in none, or in some (noise)."""
    same = [difference * paper > 0 for difference in ours]
    if not same:
        return NOT_MEASURED
    return "holds" if all(same) else "within seed noise" if any(same) else "fails"


def orderings(results: Results) -> str:
    """Which of Table 4's orderings hold here: differences in R1 / mAP, and the verdict."""
    published = PROTOCOLS["occluded_reid"].published
    rows = []
    for pair in ORDERINGS:
        paper = {name: published[pair[0]][name] - published[pair[1]][name] for name in ("R1", "mAP")}
        judged = [_judged(results, pair, protocol, paper) for protocol in SETTINGS]
        rows.append([" over ".join(pair), f"{paper['R1']:+.1f} / {paper['mAP']:+.1f}", *judged])
    return table(("R1 / mAP", "paper", *SETTINGS.values()), rows)


def _judged(results: Results, pair: tuple[str, str], protocol: str, paper: Mapping[str, float]) -> str:
    ours = {name: differences(results, pair, protocol, name) for name in paper}
    if not all(ours.values()):
        return NOT_MEASURED
    words = {name: verdict(paper[name], values) for name, values in ours.items()}
    said = words["R1"] if len(set(words.values())) == 1 else ", ".join(f"{name} {word}" for name, word in words.items())
    return f"{' / '.join(f'{fmean(values):+.1f}' for values in ours.values())} **{said}**"


def costs(results: Results) -> str:
    """What every run cost, and where its losses ended."""
    losses = ("identity", "triplet", "parsing", "human")
    rows = []
    for name, run in _long(results):
        training = run.training
        ended = (
            f"{training['last_losses'][loss]:.2f}" if loss in training["last_losses"] else NOT_MEASURED
            for loss in losses
        )
        cost = (f"{training['steps']:,}", f"{training['seconds_per_step']:.2f}", f"{training['minutes']:.0f}")
        rows.append([f"`{name}`", str(run.recipe["seed"]), *cost, *ended])
    return table(("run", "seed", "steps", "s a step", "minutes", *(f"last {loss} loss" for loss in losses)), rows)


def sources(results: Results) -> str:
    """Which weights and photos the numbers belong to."""
    rows = []
    for name, run in _long(results):
        record = next(iter(run.scores.values()))
        versions = record["versions"]
        seen = f"torch {versions['torch']}, {versions['device']}"
        rows.append([f"[`{name}`](../results/{name})", f"`{file_hash(record)[:16]}`", str(len(run.scores)), seen])
    return table(("run", "weights sha256", "protocols", "measured with"), rows)


def first_answers(results: Results) -> str:
    """How many parts the first answers to wholly visible queries share with them, beside what the gallery shows."""
    rows = []
    for name, run in results.runs.items():
        counted = run.extras.get("first_answers", {})
        for ranking, record in counted.get("rankings", {}).items():
            for outcome in ("right", "wrong"):
                shares = _part_shares(record[outcome]["percent_by_common_parts"])
                rows.append([f"`{name}`, {ranking}, {outcome}", f"{record[outcome]['queries']:,}", *shares])
        if counted:
            shares = _part_shares(counted["gallery_percent_by_visible_parts"])
            rows.append([f"`{name}`, all gallery photos, parts visible", "", *shares])
    return table(("first answer", "queries", *(f"{parts} in common" for parts in range(1, len(PARTS) + 1))), rows)


def _part_shares(shares: Mapping[str, float]) -> list[str]:
    return [f"{shares[str(parts)]:.1f}" for parts in range(1, len(PARTS) + 1)]


def _long(results: Results) -> Iterable[tuple[str, Run]]:
    return ((name, run) for name, run in results.runs.items() if not name.startswith(TRIAL))


def tracklets(results: Results) -> str:
    """What templates of tracks are worth with the compact model: all people, and people behind walls."""
    record = results.compact.extras.get("tracklets", {})
    rows = [
        [f"{title}: {name}", f"{each['size']:,}", *cells(each, ("R1", "mAP"))]
        for key, title in (("whole", "as photographed"), ("walled", "behind walls"))
        for name, each in record.get(key, {}).get("galleries", {}).items()
    ]
    return table(("gallery", "size", "R1", "mAP"), rows)


def demo(results: Results) -> str:
    """What `hpnet demo` printed."""
    names = ("R1", "R3", "R5", "R10", "mAP")
    return table(("percent", *names), ([who, *cells(scores, names)] for who, scores in results.demo["scores"].items()))


def ablation_summary(results: Results) -> str:
    """HPNet and the baseline on an equal budget, for the first page."""
    rows = [[title, *(_pair(results, title, protocol) for protocol in SETTINGS)] for title in ("HPNet", "Baseline")]
    return table(("R1 / mAP", *SETTINGS.values()), rows)


BLOCKS: Final[dict[str, Callable[[Results], str]]] = {
    "compact": compact_scores,
    "compact-made": compact_made,
    "severity": _grouped("by_severity", "severity"),
    "hidden-part": _grouped("by_hidden_part", "hidden part"),
    "kind": _grouped("by_kind", "kind"),
    "common-parts": common_parts,
    "visibility": visibility,
    "open-set": open_set,
    "calibration": calibration,
    "ablation": ablation,
    "ablation-summary": ablation_summary,
    "ablation-occluded": _ablation_on("market1501-occluded"),
    "ablation-market1501": _ablation_on("market1501"),
    "orderings": orderings,
    "first-answers": first_answers,
    "costs": costs,
    "sources": sources,
    "demo": demo,
    "tracklets": tracklets,
}
