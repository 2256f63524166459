"""From detections to numbers: the metrics of COCO and VOC, their tables and files."""

from atss_core.evaluation.coco import (
    METRIC_NAMES,
    CocoEvaluator,
    CocoMetrics,
    check_expected_results,
    save_results,
)
from atss_core.evaluation.voc import VocMetrics, evaluate_voc

__all__ = [
    "METRIC_NAMES",
    "CocoEvaluator",
    "CocoMetrics",
    "VocMetrics",
    "check_expected_results",
    "evaluate_voc",
    "save_results",
]
