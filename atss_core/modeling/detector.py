"""The detector: a network, and a thin door from images to losses or detections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.head import AtssHead, HeadOutputs
from atss_core.modeling.losses import Criterion, Matched, share_normalizers
from atss_core.modeling.postprocess import PostProcessor
from atss_core.structures import BoxList, ImageList


class DenseStage(nn.Module):
    """Head and anchor generator, under the names that they have in every released checkpoint."""

    def __init__(self, head: AtssHead, anchor_generator: AnchorGenerator) -> None:
        super().__init__()
        self.head = head
        self.anchor_generator = anchor_generator


class Detector(nn.Module):
    """A one-stage detector.

    The network knows neither loss nor NMS: ``predict`` runs it alone, ``criterion`` and ``postprocess`` work
    on its outputs.

    Args:
        backbone: maps images (N, 3, H, W) to feature levels.
        rpn: dense stage; ``rpn`` is its name in every released checkpoint.
        criterion: for training.
        postprocess: for inference.
    """

    def __init__(
        self, backbone: nn.Module, rpn: DenseStage, criterion: Criterion, postprocess: PostProcessor
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.criterion = criterion
        self.postprocess = postprocess

    def forward(
        self,
        images: ImageList,
        targets: Sequence[BoxList] | None = None,
        matched: Matched | None = None,
    ) -> dict[str, Tensor] | list[BoxList]:
        """Return the loss terms in training mode, else the detections of each image.

        Args:
            images: normalised, padded batch.
            targets: ground truth of each image in pixels of the batch; for training.
            matched: from ``self.match``, instead of ``targets`` if the images are one micro-batch of several.

        Raises:
            ValueError: if there is no ground truth in training mode.
        """
        if not self.training:
            return self.postprocess(self.predict(images), images.image_sizes)
        if matched is None:
            if targets is None:
                raise ValueError(
                    "targets: expected ground truth in training mode, got None. Call eval() for inference."
                )
            (matched,) = self.match([(images, targets)])
        return self.criterion(self.predict(images), matched)

    def predict(self, images: ImageList) -> HeadOutputs:
        """Run the network alone."""
        return self.rpn.head(self.backbone(images.tensors))

    def match(self, micro_batches: Sequence[tuple[ImageList, Sequence[BoxList]]]) -> list[Matched]:
        """Assign the anchors of the micro-batches of one update, normalised over all of them."""
        anchors = self.rpn.anchor_generator.for_image
        return share_normalizers(
            [
                self.criterion.match(anchors((images.tensors.shape[-2], images.tensors.shape[-1])), targets)
                for images, targets in micro_batches
            ]
        )
