"""The axis formula: which stored entries carry which logical elements.

Every stored axis says which logical dimension of its layer it follows, and that each `logical`
elements of it are stored as `stored` entries. Sharding, packing, fusing and validating are this one
formula. Integers only.
"""

from qload.layout.axes import Axis, expert, fixed, in_, measured, out, packing, part
from qload.layout.intervals import Cut, Dim, Extent, Extents, Interval, Region, volume
from qload.layout.layouts import Layout, Place

__all__ = [
    "Axis",
    "Cut",
    "Dim",
    "Extent",
    "Extents",
    "Interval",
    "Layout",
    "Place",
    "Region",
    "expert",
    "fixed",
    "in_",
    "measured",
    "out",
    "packing",
    "part",
    "volume",
]
