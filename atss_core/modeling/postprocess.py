"""From head outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atss_core.layers import batched_nms_padded
from atss_core.modeling.anchors import Anchors
from atss_core.modeling.box_coder import Coder
from atss_core.modeling.head import HeadOutputs, flatten_level
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops


class PostProcessor:
    """Choose, decode and deduplicate detections.

    Args:
        box_coder: decodes the head's box codes.
        score_threshold: a class probability must exceed this to be a candidate, before centerness counts.
        nms_threshold: IoU of the class-wise NMS; 0 or less leaves it out.
        pre_nms_top_n: candidates a level and image that enter the NMS.
        max_detections: detections an image, 0 for all; ties with the last one stay as well.
    """

    def __init__(
        self,
        box_coder: Coder,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        pre_nms_top_n: int = 1000,
        max_detections: int = 100,
    ) -> None:
        self.box_coder = box_coder
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold if nms_threshold > 0 else 1.0  # no IoU is above 1
        self.pre_nms_top_n = pre_nms_top_n
        self.max_detections = max_detections

    def __call__(
        self, outputs: HeadOutputs, anchors: Anchors, image_sizes: Sequence[tuple[int, int]]
    ) -> list[BoxList]:
        """Return the detections of each image by falling score, clipped to its (height, width)."""
        boxes, scores, labels = self.candidates(outputs, anchors, image_sizes)
        keep, counts = batched_nms_padded(boxes, scores, labels, self.nms_threshold, self.max_detections)
        results = []
        for i, count in enumerate(counts.tolist()):  # the only wait for the device
            kept = keep[i, :count]
            results.append(
                BoxList(boxes[i, kept], image_sizes[i], labels=labels[i, kept], scores=scores[i, kept])
            )
        return results

    def candidates(
        self, outputs: HeadOutputs, anchors: Anchors, image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what enters the NMS: boxes (N, M, 4), scores (N, M), labels (N, M); score -1 is no box."""
        boxes, scores, labels = self.unclipped_candidates(outputs, anchors)
        boxes = torch.stack([box_ops.clip(b, size) for b, size in zip(boxes, image_sizes, strict=True)])
        return boxes, scores, labels

    def unclipped_candidates(self, outputs: HeadOutputs, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``candidates`` returns, with boxes that may leave their image."""
        centerness: Sequence[Tensor | None] = outputs.centerness or [None] * len(outputs.cls_logits)
        levels = zip(
            outputs.cls_logits,
            outputs.box_codes,
            centerness,
            anchors.boxes.split(anchors.counts),
            strict=True,
        )
        candidates = [self._select(*level, anchors.num_anchors) for level in levels]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        return boxes, scores, labels

    def _select(
        self,
        cls_logits: Tensor,
        box_codes: Tensor,
        centerness: Tensor | None,
        anchors: Tensor,
        num_anchors: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, M, 4), scores (N, M) and labels (N, M) of a level; score -1 is no candidate.

        A score is the root of class probability times centerness, or the class probability alone if there is
        no centerness.
        """
        num_classes = cls_logits.shape[1] // num_anchors
        probabilities = flatten_level(cls_logits, num_classes).float().sigmoid()
        products = probabilities
        if centerness is not None:
            products = probabilities * flatten_level(centerness, 1).float().sigmoid()
        products = torch.where(probabilities > self.score_threshold, products, -1.0).flatten(1)
        products, index = products.topk(torch.sym_min(self.pre_nms_top_n, products.shape[1]))
        anchor_index = index // num_classes
        codes = flatten_level(box_codes, 4).gather(1, anchor_index[..., None].expand(-1, -1, 4))
        boxes = self.box_coder.decode(codes.float(), anchors[anchor_index])
        scores = products
        if centerness is not None:
            scores = torch.where(products < 0, -1.0, products.clamp(min=0).sqrt())
        return boxes, scores, index % num_classes + 1
