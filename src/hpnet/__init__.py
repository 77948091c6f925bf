"""hpnet: find a person again in a sea of photos, even half hidden.

The face of the library; everything is imported when it is first used, so that `import hpnet` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpnet.distance import part_distance
    from hpnet.embed import Embedder
    from hpnet.gallery import Gallery, Match
    from hpnet.model import HPNet, ModelConfig, ModelOutput
    from hpnet.parts import Part, PartFeatures

__all__ = [
    "Embedder",
    "Gallery",
    "HPNet",
    "Match",
    "ModelConfig",
    "ModelOutput",
    "Part",
    "PartFeatures",
    "part_distance",
]

_HOMES = {
    "Embedder": "embed",
    "Gallery": "gallery",
    "HPNet": "model",
    "Match": "gallery",
    "ModelConfig": "model",
    "ModelOutput": "model",
    "Part": "parts",
    "PartFeatures": "parts",
    "part_distance": "distance",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpnet' has no attribute {name!r}")
    return getattr(import_module(f"hpnet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
