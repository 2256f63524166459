"""The detector: backbone, dense head, and what turns head outputs into losses or detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.head import AtssHead, HeadOutputs
from atss_core.modeling.loss import AtssLoss
from atss_core.modeling.postprocess import PostProcessor
from atss_core.structures import BoxList, ImageList


class DenseStage(nn.Module):
    """Head and anchors with the loss of training and the post-processing of inference.

    Args:
        head: predicts from the feature levels.
        anchor_generator: lays anchors over them.
        loss: for training.
        postprocess: for inference.
    """

    def __init__(
        self, head: AtssHead, anchor_generator: AnchorGenerator, loss: AtssLoss, postprocess: PostProcessor
    ) -> None:
        super().__init__()
        self.head = head
        self.anchor_generator = anchor_generator
        self.loss = loss
        self.postprocess = postprocess


class Detector(nn.Module):
    """A one-stage detector.

    Args:
        backbone: maps images (N, 3, H, W) to feature levels.
        rpn: the dense stage. It is called ``rpn`` because that is its name in every released checkpoint.
    """

    def __init__(self, backbone: nn.Module, rpn: DenseStage) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn

    def forward(
        self,
        images: ImageList,
        targets: Sequence[BoxList] | None = None,
        normalizers: Tensor | None = None,
    ) -> dict[str, Tensor] | list[BoxList]:
        """Return the loss terms when training, else the detections.

        Args:
            images: a normalised, padded batch.
            targets: in training, the ground truth of each image in pixels of the batch.
            normalizers: of ``self.normalizers``, if this is a part of a larger batch.

        Raises:
            ValueError: if targets are missing in training.
        """
        if not self.training:
            return self.detect(self.predict(images), images.image_sizes)
        if targets is None:
            raise ValueError("training needs targets; call detector.eval() for inference")
        outputs = self.predict(images)
        return self.rpn.loss(outputs, self.rpn.anchor_generator(outputs.grid_sizes), targets, normalizers)

    @torch.no_grad()
    def normalizers(self, parts: Sequence[tuple[ImageList, Sequence[BoxList]]]) -> Tensor:
        """Return what the losses of all parts of a batch are divided by, from images and targets of each."""
        generator = self.rpn.anchor_generator
        return self.rpn.loss.normalizers(
            [
                self.rpn.loss.targets(
                    generator.for_image((images.tensors.shape[-2], images.tensors.shape[-1])), targets
                )
                for images, targets in parts
            ]
        )

    def predict(self, images: ImageList) -> HeadOutputs:
        """Run the network alone."""
        return self.rpn.head(self.backbone(images.tensors))

    def detect(self, outputs: HeadOutputs, image_sizes: Sequence[tuple[int, int]]) -> list[BoxList]:
        """Turn head outputs into the detections of each image of size (height, width)."""
        return self.rpn.postprocess(outputs, self.rpn.anchor_generator(outputs.grid_sizes), image_sizes)

    def candidates(
        self, outputs: HeadOutputs, image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``detect`` passes to its NMS; see ``PostProcessor.candidates``."""
        anchors = self.rpn.anchor_generator(outputs.grid_sizes)
        return self.rpn.postprocess.candidates(outputs, anchors, image_sizes)
