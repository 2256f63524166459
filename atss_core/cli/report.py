"""The report of an evaluation, which train, test and quickstart write."""

from __future__ import annotations

from collections.abc import Mapping

from yacs.config import CfgNode

from atss_core.apps.check.checks import limits_of_metrics
from atss_core.apps.report.report import report_evaluation
from atss_core.engine.evaluate import Evaluated


def build_report(cfg: CfgNode, facts: Mapping[str, str], evaluated: Evaluated) -> str:
    """Build the page of an evaluated dataset, with the warnings of its check."""
    warnings = [defect.message for defect in limits_of_metrics(cfg, evaluated.dataset)]
    return report_evaluation(cfg, facts, evaluated, warnings)
