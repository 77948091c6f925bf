"""How right the predicted visibility is: every paper on hidden people claims it, this measures it.

In: which parts the network says it sees, and which can be seen. Out: precision and recall per part. Beside them stands
how often hidden parts are found hidden, since nearly all parts are visible and "all of them" would score well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from jaxtyping import Bool
from torch import Tensor

from hpnet.parts import PARTS

ACCURACY: Final = ("visible", "hidden", "unsure", "precision %", "recall %", "hidden recall %")  # heads of `cells`


@dataclass(frozen=True)
class VisibilityAccuracy:
    """How right the visibility of a part, or of all, was; fractions 0..1, None where nothing can be divided.

    Attributes:
        visible: parts that can be seen, among those the truth is sure of.
        hidden: parts that cannot.
        unsure: parts left out, because nobody can say.
        precision: of those predicted visible, the share that is.
        recall: of the visible ones, the share predicted visible.
        hidden_recall: of the hidden ones, the share predicted hidden.
    """

    visible: int
    hidden: int
    unsure: int
    precision: float | None
    recall: float | None
    hidden_recall: float | None

    def as_record(self) -> dict[str, float | int | None]:
        """For result files: counts as they are, shares in percent."""
        return {name: 100 * value if isinstance(value, float) else value for name, value in asdict(self).items()}

    def cells(self) -> list[str]:
        """The same as texts, below the heads `ACCURACY`."""
        written = {int: "{:,}", float: "{:.1f}", type(None): "-"}
        return [written[type(value)].format(value) for value in self.as_record().values()]


def accuracy_by_part(
    predicted: Bool[Tensor, "q m"], visible: Bool[Tensor, "q p"], sure: Bool[Tensor, "q p"]
) -> dict[str, VisibilityAccuracy]:
    """For each part by its name in lower case, and for "all" together; nothing for a model that knows no parts."""
    if predicted.shape != visible.shape:
        return {}
    by_part = {
        part.name.lower(): visibility_accuracy(predicted[:, part], visible[:, part], sure[:, part]) for part in PARTS
    }
    return {**by_part, "all": visibility_accuracy(predicted, visible, sure)}


def visibility_accuracy(
    predicted: Bool[Tensor, "*q"], visible: Bool[Tensor, "*q"], sure: Bool[Tensor, "*q"]
) -> VisibilityAccuracy:
    """Compare predicted visibility with the truth, of one part or of several together.

    Args:
        predicted: what the network says.
        visible: the truth; its value does not matter where it is not sure.
        sure: where the truth is known.
    """
    really, hidden = visible & sure, ~visible & sure
    said = predicted & sure
    return VisibilityAccuracy(
        visible=int(really.sum()),
        hidden=int(hidden.sum()),
        unsure=int((~sure).sum()),
        precision=_share(said & really, said),
        recall=_share(said & really, really),
        hidden_recall=_share(hidden & ~predicted, hidden),
    )


def _share(some: Bool[Tensor, "*q"], all_of_them: Bool[Tensor, "*q"]) -> float | None:
    total = int(all_of_them.sum())
    return int(some.sum()) / total if total else None
