"""Templates: one person's many views on a track made into one `PartFeatures`.

In: the views of a track, each with the parts it shows. Out: per part the mean over the views that show it, so that
views which show different parts complete each other, and a view in which something hides a part never spoils what
others saw of it.

Of a view the network says only whether it shows a part, not how well; so every view that shows a part counts alike,
and visibility, yes or no, is all the weight there is.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hpnet.parts import PartFeatures

_NO_DIRECTION: Final = 1e-6  # a mean shorter than this is rounding: its views say opposite things


class Tracklet:
    """The running template of one person; takes the memory of one view, however many it is shown.

    Attributes:
        views: how many it was shown.
    """

    def __init__(self) -> None:
        self.views = 0
        self._total: Float[Tensor, "p d"] | None = None
        self._shown: Integer[Tensor, " p"] | None = None

    def see(self, views: PartFeatures) -> None:
        """Take in n more views.

        Raises:
            ValueError: parts or dimensions are not those of the views before.
        """
        # In double precision, so that the order of views decides nothing.
        values = torch.where(views.visibility[..., None], views.features.double(), 0.0).sum(0)
        shown = views.visibility.sum(0)
        if self._total is not None and self._shown is not None:
            if values.shape != self._total.shape:
                shapes = tuple(self._total.shape), tuple(values.shape)
                raise ValueError(f"views of a track differ in (parts, dimensions): {shapes[0]} and {shapes[1]}")
            values, shown = values + self._total, shown + self._shown
        self._total, self._shown = values, shown
        self.views += len(views)

    def template(self) -> PartFeatures:
        """One person, float32: unit length per part that any view showed; other parts are not visible, and zeros.

        Should the views of a part cancel, there is no direction to keep: the part is not visible.

        Raises:
            ValueError: no view was shown.
        """
        if self._total is None or self._shown is None or not self.views:
            raise ValueError("a template needs at least one view")
        mean = self._total / self._shown.clamp(min=1)[:, None]
        length = mean.norm(dim=-1, keepdim=True)
        visible = length[:, 0] > _NO_DIRECTION
        features = torch.where(visible[:, None], mean / length.clamp(min=_NO_DIRECTION), 0.0)
        return PartFeatures(features.float()[None], visible[None])


def template(views: PartFeatures) -> PartFeatures:
    """One person (n = 1) out of n views of that person, n at least 1; see `Tracklet.template`."""
    tracklet = Tracklet()
    tracklet.see(views)
    return tracklet.template()
