"""Plain containers that flow through the detector: boxes, box lists, image lists."""

from atss_core.structures.box_list import BoxList
from atss_core.structures.image_list import ImageList

__all__ = ["BoxList", "ImageList"]
