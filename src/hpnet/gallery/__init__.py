"""People kept on disk, and found again by the parts both photos show.

`store` keeps them, `columns` says how they lie, `nearest` finds.
"""

from hpnet.gallery.columns import GalleryError, Moment, Value
from hpnet.gallery.store import FORMAT, MEMORY, Gallery, Match

__all__ = ["FORMAT", "MEMORY", "Gallery", "GalleryError", "Match", "Moment", "Value"]
