"""From head outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from atss_core.layers import batched_nms_padded
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.box_coder import Coder
from atss_core.modeling.head import HeadOutputs, flatten_level
from atss_core.structures import BoxList
from atss_core.structures import boxes as box_ops


@dataclass
class PostProcessor:
    """Select, decode and deduplicate detections.

    Args:
        anchor_generator: that of the network.
        box_coder: decodes the head's boxes.
        score_threshold: a candidate's class probability must exceed this, before centerness counts.
        nms_threshold: IoU of the class-wise NMS; 0 or less disables it.
        pre_nms_top_n: candidates per level and image that enter the NMS.
        max_detections: detections per image, 0 for all; ties with the last one stay as well.
    """

    anchor_generator: AnchorGenerator
    box_coder: Coder
    _: KW_ONLY
    score_threshold: float = 0.05
    nms_threshold: float = 0.6
    pre_nms_top_n: int = 1000
    max_detections: int = 100

    def __post_init__(self) -> None:
        if self.nms_threshold <= 0:
            self.nms_threshold = 1.0  # no IoU is above 1

    def __call__(self, outputs: HeadOutputs, image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Return the detections of each image by falling score, clipped to its (height, width)."""
        boxes, scores, labels = self.candidates(outputs, image_sizes)
        keep, counts = batched_nms_padded(boxes, scores, labels, self.nms_threshold, self.max_detections)
        results = []
        for i, count in enumerate(counts.tolist()):  # the only wait for the device
            kept = keep[i, :count]
            results.append(
                BoxList(boxes[i, kept], image_sizes[i], labels=labels[i, kept], scores=scores[i, kept])
            )
        return results

    def candidates(
        self, outputs: HeadOutputs, image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input of the NMS: boxes (N, M, 4), scores (N, M), labels (N, M); score -1 is padding."""
        boxes, scores, labels = self.unclipped_candidates(outputs)
        boxes = torch.stack([box_ops.clip(b, size) for b, size in zip(boxes, image_sizes, strict=True)])
        return boxes, scores, labels

    def unclipped_candidates(self, outputs: HeadOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as ``candidates``, with boxes that may leave their image."""
        anchors = self.anchor_generator(outputs.grid_sizes)
        centerness: Sequence[Tensor | None] = outputs.centerness or [None] * len(outputs.cls_logits)
        levels = zip(
            outputs.cls_logits,
            outputs.encoded_boxes,
            centerness,
            anchors.boxes.split(anchors.counts),
            strict=True,
        )
        candidates = [self._select(*level) for level in levels]
        boxes, scores, labels = (torch.cat(values, dim=1) for values in zip(*candidates, strict=True))
        return boxes, scores, labels

    def _select(
        self, cls_logits: Tensor, encoded_boxes: Tensor, centerness: Tensor | None, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, M, 4), scores (N, M) and labels (N, M) of a level; score -1 is padding.

        The score is the square root of class probability times centerness, or the class probability alone if
        there is no centerness.
        """
        num_classes = cls_logits.shape[1] // self.anchor_generator.num_anchors
        probabilities = flatten_level(cls_logits, num_classes).float().sigmoid()
        products = probabilities
        if centerness is not None:
            products = probabilities * flatten_level(centerness, 1).float().sigmoid()
        products = torch.where(probabilities > self.score_threshold, products, -1.0).flatten(1)
        products, index = products.topk(torch.sym_min(self.pre_nms_top_n, products.shape[1]))
        anchor_index = index // num_classes
        encoded = flatten_level(encoded_boxes, 4).gather(1, anchor_index[..., None].expand(-1, -1, 4))
        boxes = self.box_coder.decode(encoded.float(), anchors[anchor_index])
        scores = products
        if centerness is not None:
            scores = torch.where(products < 0, -1.0, products.clamp(min=0).sqrt())
        return boxes, scores, index % num_classes + 1
