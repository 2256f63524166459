"""A plain ATSS as a reference for the fast assigner: all distances, all IoUs, one box at a time.

In float64, so that no decision depends on the order of additions.
"""

import torch

from atss_core.structures import boxes as box_ops


def assign(anchors, boxes, topk, in_box=True):
    """Match K anchors to (G, 4) boxes as ``AtssAssigner`` does for one image; returns (K,) int64."""
    anchor_boxes, boxes = anchors.boxes.double(), boxes.double()
    # The anchors of a location share its centre, a whole pixel, up to the rounding of their sides.
    centers = box_ops.centers(anchor_boxes).round()
    best_iou = torch.full((len(anchor_boxes),), -1.0, dtype=torch.float64)
    matched = torch.full((len(anchor_boxes),), -1)
    for index, box in enumerate(boxes):
        distances = (centers - box_ops.centers(box)).square().sum(dim=1)
        candidates, start = [], 0
        for count in anchors.counts:
            order = distances[start : start + count].sort(stable=True).indices
            candidates.append(order[: topk * anchors.num_anchors] + start)
            start += count
        candidates = torch.cat(candidates)
        ious = box_ops.iou(anchor_boxes[candidates], box)
        threshold = ious.mean() + (ious.std() if len(ious) > 1 else 0)
        inside = box_ops.distances_to_sides(centers[candidates], box).amin(dim=1) > 0.01
        inside = inside if in_box else ious > 0
        for anchor, iou in zip(
            candidates[inside & (ious >= threshold)], ious[inside & (ious >= threshold)], strict=True
        ):
            if iou > best_iou[anchor]:
                best_iou[anchor], matched[anchor] = iou, index
    return matched
