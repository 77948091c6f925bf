"""People kept on disk, and found again by the parts both photos show.

`store` is the gallery, `folder` where it lies, `columns` says how people lie, `commits` how a change gets on disk,
`listing` who is in it, `versions` what happened to it. `reading` reads features, `nearest` finds, `answers` says whom;
`prepared` holds people in memory so that few have to be looked at closely, for `bounds` says of the others how far
they are at least.
"""

from hpnet.gallery.answers import Apart, Match
from hpnet.gallery.columns import Attribute, GalleryError, Moment, Value
from hpnet.gallery.folder import FORMAT
from hpnet.gallery.listing import Entry
from hpnet.gallery.store import MEMORY, Gallery
from hpnet.gallery.versions import Compaction, Version

__all__ = [
    "FORMAT",
    "MEMORY",
    "Apart",
    "Attribute",
    "Compaction",
    "Entry",
    "Gallery",
    "GalleryError",
    "Match",
    "Moment",
    "Value",
    "Version",
]
