"""The detector as one function of tensors, which ``torch.export`` can trace.

The detector's own modules do the computing. This file adds what surrounds them: pixel normalisation, clipping
to image sizes, and an NMS that the target format can express.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from atss_core.layers import batched_nms_mask
from atss_core.modeling import Detector
from atss_core.structures import boxes as box_ops
from atss_core.structures.pixel_format import PixelFormat

INPUTS = ("images", "image_sizes")
CANDIDATES = ("boxes", "scores", "labels")
DETECTIONS = (*CANDIDATES, "counts")

# Maps boxes (N, M, 4), scores (N, M), labels (N, M) and an IoU threshold to a mask of the kept boxes (N, M).
Nms = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class DetectorGraph(nn.Module):
    """Map raw pixels to detections, or to candidates for an NMS outside the file.

    Args:
        detector: with its weights.
        pixels: the format it was trained on.
        size_divisibility: sides are padded to multiples of this; 0 and 1 add no padding.
        nms: None returns candidates.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, detector: Detector, *, pixels: PixelFormat, size_divisibility: int, nms: Nms | None = None
    ) -> None:
        super().__init__()
        self.detector = detector
        self.is_bgr = pixels.is_bgr255
        self.size_divisibility = max(size_divisibility, 1)
        self.nms = nms
        unit = 1.0 if pixels.is_bgr255 else 255.0  # same operation order as data/transforms.py
        self.register_buffer("mean", torch.tensor([unit * value for value in pixels.mean])[:, None, None])
        self.register_buffer("std", torch.tensor([unit * value for value in pixels.std])[:, None, None])

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in a batch.

        Args:
            images: RGB in 0..255, uint8, shape (N, 3, H, W), smaller images at the top left.
            image_sizes: (height, width) in pixels of each image before padding, int64, shape (N, 2).

        Returns:
            Without NMS boxes (N, M, 4), scores (N, M) and labels (N, M), where a score of -1 marks padding.
            With NMS boxes (N, D, 4), scores (N, D) and labels (N, D) by descending score, padded with zeros,
            and their counts (N,). Boxes are inclusive pixels of ``images``.
        """
        outputs = self.detector.rpn.head(self.detector.backbone(self.normalize(images, image_sizes)))
        settings = self.detector.postprocess
        boxes, scores, labels = settings.unclipped_candidates(outputs)
        boxes = clip_boxes(boxes, image_sizes)
        if self.nms is None:
            return boxes, scores, labels
        is_kept = self.nms(boxes, scores, labels, settings.nms_threshold)
        return top_k(boxes, torch.where(is_kept, scores, -1.0), labels, settings.max_detections)

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Return normalised images, zero outside ``image_sizes``, padded to the size divisibility."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None] < image_sizes[:, 0, None, None]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1, None, None]
        ordered = images.flip(1) if self.is_bgr else images
        normalized = torch.where((rows & columns)[:, None], (ordered.float() - self.mean) / self.std, 0.0)
        step = self.size_divisibility
        right, bottom = ((side + step - 1) // step * step - side for side in (width, height))
        return F.pad(normalized, (0, right, 0, bottom))


def clip_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes (N, M, 4) to images of (height, width), int64, shape (N, 2), as ``boxes.clip`` does."""
    full_images = torch.cat([torch.zeros_like(image_sizes), image_sizes.flip(1)], dim=1).to(boxes.dtype)
    last_pixels = box_ops.to_inclusive(full_images)[:, 2:].repeat(1, 2)
    return torch.minimum(boxes.clamp(min=0), last_pixels[:, None])


def top_k(boxes: Tensor, scores: Tensor, labels: Tensor, max_detections: int) -> tuple[Tensor, ...]:
    """Return the highest-scoring boxes, scores and labels of each image, padded with zeros, and their counts.

    Args:
        boxes: shape (N, M, 4).
        scores: shape (N, M); -1 marks padding.
        labels: shape (N, M).
        max_detections: boxes to return (D); 0 for all.
    """
    if max_detections:  # small images have fewer candidates
        boxes = F.pad(boxes, (0, 0, 0, max_detections))
        scores = F.pad(scores, (0, max_detections), value=-1.0)
        labels = F.pad(labels, (0, max_detections))
    scores, order = scores.topk(max_detections or scores.shape[1])
    is_box = scores >= 0
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return (
        torch.where(is_box[..., None], boxes, 0.0),
        torch.where(is_box, scores, 0.0),
        torch.where(is_box, labels.gather(1, order), 0),
        is_box.sum(dim=1),
    )


@torch.library.custom_op("atss_export::nms_mask", mutates_args=())
def nms_node(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int) -> Tensor:
    """Run ``batched_nms_mask`` on exclusive boxes (N, M, 4) as one node, which becomes ONNX's NMS."""
    return batched_nms_mask(box_ops.to_inclusive(boxes), scores, labels, iou_threshold)


@nms_node.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
