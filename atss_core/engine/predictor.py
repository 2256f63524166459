"""The Python API: a configuration, weights and a picture in; detections out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from atss_core.config import load_cfg
from atss_core.config.catalog import COCO_CLASSES
from atss_core.data import (
    Batch,
    Sample,
    build_collate,
    build_transform,
    fill_num_classes,
    read_image,
    to_rgb,
)
from atss_core.data.transforms import Transform
from atss_core.engine.build import build_device, build_inference, move_detector
from atss_core.engine.inference import Inference
from atss_core.modeling import build_detector
from atss_core.structures import BoxList
from atss_core.utils.checkpoint import load_weights_strictly
from atss_core.utils.weights import read_detector, weights_of


class Predictor:
    """Detect objects in single pictures.

    Args:
        inference: the detector with its weights, as ``build_inference`` returns.
        transform: makes a tensor of a picture, as ``build_transform`` returns.
        collate: pads it, as ``build_collate`` returns.
        class_names: the name of label i at i - 1.
    """

    def __init__(
        self,
        inference: Inference,
        transform: Transform,
        collate: Callable[[Sequence[Sample]], Batch],
        class_names: list[str],
    ) -> None:
        inference.detector.eval()
        self.inference = inference
        self.transform = transform
        self.collate = collate
        self.class_names = class_names

    @classmethod
    def from_config(cls, config: str | Path, weights: str | Path, opts: list[str] | None = None) -> Predictor:
        """Build a predictor from a YAML file and a checkpoint.

        Args:
            config: path of the YAML file.
            weights: path or URL of the checkpoint.
            opts: overrides, as on the command line.

        Raises:
            ValueError: if the configuration or the checkpoint is faulty, or they do not fit together.
            FileNotFoundError: if one is not there.
        """
        settings = load_cfg(config, opts or [])
        device = build_device(settings)
        source, checkpoint = read_detector(weights)
        if checkpoint.get("class_names"):
            settings = fill_num_classes(settings, checkpoint["class_names"])
        detector = build_detector(settings)
        load_weights_strictly(detector, weights_of(checkpoint), source)
        class_names = checkpoint.get("class_names") or default_class_names(detector.rpn.head.num_classes)
        return cls(
            build_inference(settings, move_detector(settings, detector, device), device),
            build_transform(settings, training=False),
            build_collate(settings),
            class_names,
        )

    @property
    def device(self) -> torch.device:
        """Return where the detector is."""
        return self.inference.device

    @torch.inference_mode()
    def __call__(self, image: Image.Image | str | Path) -> BoxList:
        """Detect objects in a picture.

        Args:
            image: a picture of any mode, or the path of one, which is turned upright as its EXIF data says.

        Returns:
            Detections by falling score in pixels of the picture, on the CPU.
        """
        if not isinstance(image, Image.Image):
            image = read_image(Path(image), apply_exif=True)
        image = to_rgb(image)
        nothing = BoxList(torch.zeros(0, 4), (image.height, image.width))
        tensor, _ = self.transform(image, nothing, random.Random(0))
        images = self.collate([Sample(tensor, nothing, image_id=0)]).images
        (result,) = self.inference.detect(self.inference.predict(images), images.image_sizes)
        return result.to("cpu").resize((image.height, image.width))


def default_class_names(num_classes: int) -> list[str]:
    """Return the names of COCO's 80 classes, or numbers for another count: old checkpoints hold no names."""
    return list(COCO_CLASSES) if num_classes == 80 else [f"class {i}" for i in range(1, num_classes + 1)]
