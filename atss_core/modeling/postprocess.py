"""From head outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atss_core.layers import batched_nms
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
        nms_threshold: IoU of the class-wise NMS.
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
        self.nms_threshold = nms_threshold
        self.pre_nms_top_n = pre_nms_top_n
        self.max_detections = max_detections

    def __call__(
        self, outputs: HeadOutputs, anchors: Anchors, image_sizes: Sequence[tuple[int, int]]
    ) -> list[BoxList]:
        """Return the detections of each image by falling score, clipped to its (height, width)."""
        levels = zip(
            outputs.cls_logits,
            outputs.box_codes,
            outputs.centerness,
            anchors.boxes.split(anchors.counts),
            strict=True,
        )
        candidates = [self._select(*level, anchors.per_place) for level in levels]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        return [
            self._deduplicate(*candidates_of_image)
            for candidates_of_image in zip(boxes, scores, labels, image_sizes, strict=True)
        ]

    def _select(
        self, cls_logits: Tensor, box_codes: Tensor, centerness: Tensor, anchors: Tensor, per_place: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, M, 4), scores (N, M) and labels (N, M) of a level; score -1 is no candidate."""
        num_classes = cls_logits.shape[1] // per_place
        probabilities = flatten_level(cls_logits, num_classes).float().sigmoid()
        quality = flatten_level(centerness, 1).float().sigmoid()
        products = torch.where(probabilities > self.score_threshold, probabilities * quality, -1.0).flatten(1)
        products, index = products.topk(min(self.pre_nms_top_n, products.shape[1]))
        anchor_index = index.div(num_classes, rounding_mode="floor")
        codes = flatten_level(box_codes, 4).gather(1, anchor_index[..., None].expand(-1, -1, 4))
        boxes = self.box_coder.decode(codes, anchors[anchor_index])
        scores = torch.where(products < 0, -1.0, products.clamp(min=0).sqrt())
        return boxes, scores, index % num_classes + 1

    def _deduplicate(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, image_size: tuple[int, int]
    ) -> BoxList:
        is_candidate = scores >= 0
        boxes = box_ops.clip(boxes[is_candidate], image_size)
        scores, labels = scores[is_candidate], labels[is_candidate]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)
        if 0 < self.max_detections < len(keep):
            last_score = scores[keep[self.max_detections - 1]]
            keep = keep[scores[keep] >= last_score]
        return BoxList(boxes[keep], image_size, labels=labels[keep], scores=scores[keep])
