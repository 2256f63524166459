"""The COCO and VOC metrics of detections, their tables and files."""

from atss_core.evaluation.backends import choose_backend
from atss_core.evaluation.coco import CocoEvaluator, save_results
from atss_core.evaluation.metrics import METRIC_NAMES, CocoMetrics, check_expected_results
from atss_core.evaluation.voc import VocMetrics, evaluate_voc

__all__ = [
    "METRIC_NAMES",
    "CocoEvaluator",
    "CocoMetrics",
    "VocMetrics",
    "check_expected_results",
    "choose_backend",
    "evaluate_voc",
    "save_results",
]
