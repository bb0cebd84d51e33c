"""Pictures of results for people, and the files in which they are stored."""

from twostage.visualize.files import SegmentationFiles, write_segmentation
from twostage.visualize.overlay import overlay
from twostage.visualize.palette import class_colours
from twostage.visualize.panels import proposal_mosaic, side_by_side

__all__ = [
    "SegmentationFiles",
    "class_colours",
    "overlay",
    "proposal_mosaic",
    "side_by_side",
    "write_segmentation",
]
