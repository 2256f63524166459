"""The detector as one function of tensors, which ``torch.export`` can trace.

Everything that is computed is computed by the modules that the detector itself uses; here is only what they
take from outside: pixels, the sizes of the images, and the suppression of a target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from atss_core.modeling import Detector
from atss_core.structures import boxes as box_ops
from atss_core.structures.pixel_format import PixelFormat

# Takes boxes (N, M, 4), scores (N, M), labels (N, M) and the IoU threshold; returns which are kept, (N, M).
Suppress = Callable[[Tensor, Tensor, Tensor, float], Tensor]

INPUTS = ("images", "image_sizes")
CANDIDATES = ("boxes", "scores", "labels")
DETECTIONS = (*CANDIDATES, "counts")


class DetectorGraph(nn.Module):
    """From raw pixels to detections, or to the candidates for an NMS elsewhere.

    Args:
        detector: with its weights.
        pixels: what it was trained on.
        size_divisibility: sides are padded to multiples of this; 0 and 1 leave them as they are.
        suppress: the NMS; None leaves it out.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        detector: Detector,
        *,
        pixels: PixelFormat,
        size_divisibility: int,
        suppress: Suppress | None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.is_bgr = pixels.is_bgr255
        self.size_divisibility = max(size_divisibility, 1)
        self.suppress = suppress
        unit = 1.0 if pixels.is_bgr255 else 255.0  # the order of steps of data/transforms.py
        self.register_buffer("mean", torch.tensor([unit * value for value in pixels.mean])[:, None, None])
        self.register_buffer("std", torch.tensor([unit * value for value in pixels.std])[:, None, None])

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in a batch.

        Args:
            images: RGB in 0..255, uint8, shape (N, 3, H, W); images of different sizes lie at the top left.
            image_sizes: (height, width) in pixels of each image before padding, int64, shape (N, 2).

        Returns:
            Without a suppression boxes (N, M, 4), scores (N, M), labels (N, M), where a score of -1 is no
            box. With one boxes (N, D, 4), scores (N, D), labels (N, D) by falling score, zeros behind the
            last one, and how many there are (N,). Boxes are inclusive pixels of ``images``.
        """
        outputs = self.detector.rpn.head(self.detector.backbone(self.normalize(images, image_sizes)))
        anchors = self.detector.rpn.anchor_generator(outputs.grid_sizes)
        boxes, scores, labels = self.detector.rpn.postprocess.unclipped_candidates(outputs, anchors)
        boxes = clip(boxes, image_sizes)
        if self.suppress is None:
            return boxes, scores, labels
        settings = self.detector.rpn.postprocess
        is_kept = self.suppress(boxes, scores, labels, settings.nms_threshold)
        return best(boxes, torch.where(is_kept, scores, -1.0), labels, settings.max_detections)

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Return normalised images, zero outside of ``image_sizes``, with padded sides."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None] < image_sizes[:, 0, None, None]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1, None, None]
        ordered = images.flip(1) if self.is_bgr else images
        normalized = torch.where((rows & columns)[:, None], (ordered.float() - self.mean) / self.std, 0.0)
        step = self.size_divisibility
        right, bottom = ((side + step - 1) // step * step - side for side in (width, height))
        return F.pad(normalized, (0, right, 0, bottom))


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes (N, M, 4) to images of (height, width), int64, shape (N, 2), as ``boxes.clip`` does."""
    whole = torch.cat([torch.zeros_like(image_sizes), image_sizes.flip(1)], dim=1).to(boxes.dtype)
    last = box_ops.to_inclusive(whole)[:, 2:].repeat(1, 2)
    return torch.minimum(boxes.clamp(min=0), last[:, None])


def best(boxes: Tensor, scores: Tensor, labels: Tensor, max_detections: int) -> tuple[Tensor, ...]:
    """Return the best boxes, scores and labels of each image, zeros behind the last one, and their counts.

    Args:
        boxes: shape (N, M, 4).
        scores: shape (N, M); -1 is no box.
        labels: shape (N, M).
        max_detections: boxes to return (D); 0 for all.
    """
    if max_detections:  # small images have fewer candidates than that
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
