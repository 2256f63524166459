"""From detections to numbers: COCO metrics, their tables and files."""

from atss_core.evaluation.coco import (
    METRIC_NAMES,
    CocoEvaluator,
    CocoMetrics,
    check_expected_results,
    save_results,
)

__all__ = ["METRIC_NAMES", "CocoEvaluator", "CocoMetrics", "check_expected_results", "save_results"]
