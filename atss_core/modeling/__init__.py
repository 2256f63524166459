"""The model.

Shape letters used throughout: N images, L levels, A anchors per location, C classes without background,
H W grid, K anchors of an image, G ground truth of an image, P positives.
"""

from atss_core.modeling.build import build_assigner, build_detector
from atss_core.modeling.detector import Detector

__all__ = ["Detector", "build_assigner", "build_detector"]
