"""Label assignment, the subject of the paper: which anchors are positive for which ground-truth box.

Ties follow fixed rules, because boxes on whole pixels tie often:

* among anchors at the same distance from a box (or of the same rank score), the lowest anchor index wins;
* among boxes that claim an anchor equally, the lowest box index wins.

No assigner waits for the device.
"""

from atss_core.modeling.assigners.atss import AtssAssigner
from atss_core.modeling.assigners.common import BACKGROUND, IGNORED, Assigner
from atss_core.modeling.assigners.iou import IouAssigner
from atss_core.modeling.assigners.ssc import SscAssigner
from atss_core.modeling.assigners.topk import TopkAssigner

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "Assigner",
    "AtssAssigner",
    "IouAssigner",
    "SscAssigner",
    "TopkAssigner",
]
