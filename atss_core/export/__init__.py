"""Export of a detector to files that run without this package, and the parity check of these files."""

from atss_core.export.build import build_description, build_graph, build_parity_check, check_exportable
from atss_core.export.parity import Report
from atss_core.export.targets import TARGETS, files_of

__all__ = [
    "TARGETS",
    "Report",
    "build_description",
    "build_graph",
    "build_parity_check",
    "check_exportable",
    "files_of",
]
