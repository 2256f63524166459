"""The detector: network, criterion, post-processor, and the builder that makes them from a configuration.

Shape letters, used throughout the package:

    N images    L levels    H, W rows and columns of a level's grid    A anchors per location
    K anchors of an image    G ground-truth boxes of an image    P positives    M candidates
    C classes without background

Boxes are inclusive (x1, y1, x2, y2) in pixels of the padded input. Labels are 1..C, 0 background, -1 ignored.
"""

from atss_core.modeling.build import build_assigner, build_detector
from atss_core.modeling.detector import Detector

__all__ = ["Detector", "build_assigner", "build_detector"]
