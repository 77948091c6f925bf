"""Give weights their probabilities: how likely two photos show one person, at a distance and by the parts they share.

In: weights, and photos of people whom training has not seen. Out: the weights file anew, with a calibration in its
header and how far it was off. Training does the same at its end; this is for weights that exist already, and for
cameras that differ from those of training.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from hpnet import weights as weights_file
from hpnet.calibration import Calibration, KnownPeople, fit
from hpnet.console import say
from hpnet.data.reid import Person, data_hash, identity_labels
from hpnet.data.truth import read_manifest, read_occluded
from hpnet.distance import part_distance
from hpnet.embed import Embedder
from hpnet.evaluation.reliability import Reliability, Tally
from hpnet.parts import PARTS
from hpnet.training.batches import folder_of, identities_and_cameras, training_people


def calibrate(
    weights: Path,
    *,
    reid: Path,
    validation_identities: int | None = None,
    occluded: Path | None = None,
    out: Path | None = None,
    device: str | None = None,
    batch_size: int = 32,
    json: bool = False,
) -> int:
    """Fit P(same person) on people whom training has not seen, and write it into the weights file.

    Features do not change, so galleries and cached features stay valid.

    Args:
        weights: weights file, or the name of bundled weights.
        reid: a data set (its training split is used), or a CSV of photos with identities and, if known, cameras.
        validation_identities: take its last so many identities, all if there are no more; by default those that
            training kept out.
        occluded: folder that hpnet occlude --held_out wrote of the same people: their occluded copies count too. Whole
            people alone make probabilities too sure of hidden ones.
        out: the file to write; by default the weights file itself.
        device: cpu or cuda; a GPU is taken if there is one.
        batch_size: photos that go through the network together.
        json: print the calibration as JSON.
    """
    if out is None and not weights.is_file():
        raise ValueError(f"{weights}: give --out, the file to write; bundled weights stay as they are")
    training = weights_file.read_header(weights).training
    people, source = _kept_out(training, reid, validation_identities)
    if occluded is not None:
        copies = _copies(occluded, people)
        people, source = [*people, *copies], f"{source}, with {len(copies)} occluded copies"
    embedder = Embedder(weights, device=device, batch_size=batch_size)
    embedded = embedder.embed_files([person.path for person in people], progress=f"embedding {len(people)} photos")
    if embedded.failures:
        raise ValueError(f"{len(embedded.failures)} photos cannot be read: {embedded.failures[0].reason}")
    record = calibration_record(KnownPeople(embedded.features, *identities_and_cameras(people)), source)
    if not record:
        raise ValueError(
            f"{reid}: no pairs of one person and of two to calibrate on; give more people, several photos each"
        )
    kept = {name: value for name, value in training.items() if not name.startswith("calibration")}
    weights_file.with_training(weights, out or weights, kept | record)
    if json:
        say(json_format.dumps(record))
    else:
        say(_table(record))
        say(f"written: {out or weights}")
    return 0


def calibration_record(people: KnownPeople, source: str) -> dict[str, Any]:
    """What a weights header tells of its probabilities; nothing if there are no pairs to fit them on.

    `calibration` is fitted on all people. `calibration_error` is honest: it is that of two others, each fitted on one
    half of the identities and judged by the other half; None if a half is too small for that.

    Args:
        people: whom training has not seen.
        source: who they are, in words.
    """
    calibration = fit(people)
    if calibration is None:
        return {}
    error = error_between_halves(people)
    return {
        "calibration": calibration.as_record(),
        "calibration_error": None if error is None else {"ece": error.ece, "brier": error.brier},
        "calibration_from": f"{source}: {len(people.identity.unique())}",  # type: ignore[no-untyped-call]
    }


def error_between_halves(people: KnownPeople) -> Reliability | None:
    """How far off probabilities are for people on whom they were not fitted: every other identity, in turn."""
    _, number = people.identity.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    tally = Tally()
    for half in (0, 1):
        calibration, others = fit(people[number % 2 == half]), people[number % 2 != half].some()
        if calibration is None or not len(others.identity):
            return None
        first, second, match = others.pairs()
        distance, shown = part_distance(others.features, others.features), others.features.visibility
        chance = calibration.log_odds(distance, shown, shown).sigmoid()[first, second]
        tally.add(chance, match, distance[first, second].isfinite())
    return tally.reliability()


def _kept_out(training: Mapping[str, Any], reid: Path, count: int | None) -> tuple[list[Person], str]:
    """The people to calibrate on, and who they are in words.

    Raises:
        ValueError: training has seen them, or nobody knows whether it has.
    """
    told = yaml.safe_load(str(training.get("recipe", ""))) or {}
    recorded = int(told.get("validation_identities", 0)) if isinstance(told, dict) else 0
    everybody, _, name = training_people(reid, 0)
    total = len(identity_labels(everybody)[1])
    seen, unseen, _ = training_people(reid, min(recorded, total - 1))
    is_training_set = data_hash(seen, folder_of(reid)) == training.get("reid_hash")
    if is_training_set and (count or recorded) > recorded:
        raise ValueError(f"validation_identities: training kept out {recorded}, and has seen the others of {reid}")
    if count is None and not (is_training_set and recorded):
        raise ValueError(
            f"{reid}: not known whom training kept out of it; give --validation_identities, the number of the last "
            "identities that training has not seen"
        )
    if count is None or (is_training_set and count == recorded):
        return unseen, "validation identities"
    if count < 1:
        raise ValueError(f"validation_identities must be at least 1, not {count}")
    chosen = everybody if count >= total else training_people(reid, count)[1]
    return chosen, f"identities of {name}"


def _copies(occluded: Path, people: Sequence[Person]) -> list[Person]:
    """Occluded copies of these people.

    Raises:
        ValueError: the folder shows others, such as a test set's queries.
    """
    manifest = read_manifest(occluded)
    copies = read_occluded(occluded, list(manifest["kinds"])).people
    names = {person.path.stem for person in people}
    if stranger := next((copy for copy in copies if copy.path.stem not in names), None):
        raise ValueError(
            f"{occluded}: {stranger.path.name} is no copy of somebody to calibrate on; make the copies with "
            "hpnet occlude --held_out"
        )
    return copies


def _table(record: Mapping[str, Any]) -> Table:
    calibration = Calibration.from_record(record["calibration"])
    error = record["calibration_error"]
    said = (
        "the halves are too small to measure the error"
        if error is None
        else (
            f"of halves: calibration error {error['ece']:.1%}, Brier score {error['brier']:.3f} (knowing nothing: 0.25)"
        )
    )
    table = Table(
        title="P(same) by common parts: log-odds = slope x (even - distance)",
        caption=f"fitted on {record['calibration_from']}; {said}",
    )
    for head in ("parts", "even at", "slope", "same", "different"):
        table.add_column(head, justify="left" if head == "parts" else "right", no_wrap=True)
    for pattern, curve in calibration.curves.items():
        names = [
            part.name.lower().replace("_", " ") for part, digit in zip(PARTS, pattern, strict=False) if digit == "1"
        ]
        title = ", ".join(names) if calibration.parts == len(PARTS) else "the whole"
        even = f"{curve.intercept / curve.slope:.3f}" if curve.slope else "-"
        table.add_row(title, even, f"{curve.slope:.1f}", f"{curve.same:,}", f"{curve.different:,}")
    return table
