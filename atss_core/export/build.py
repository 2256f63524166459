"""Build the export graph, its description and the parity check from the config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from atss_core import __version__
from atss_core.data import build_collate, build_transform
from atss_core.data.transforms import Resize
from atss_core.export.graph import DetectorGraph
from atss_core.export.parity import ParityCheck
from atss_core.export.targets import Description
from atss_core.modeling import Detector
from atss_core.structures.pixel_format import PixelFormat


def check_exportable(cfg: CfgNode) -> None:
    """Refuse settings that an exported file cannot have.

    Raises:
        ValueError: naming the key and the remedy.
    """
    if cfg.TEST.BBOX_AUG.ENABLED:
        raise ValueError(
            "TEST.BBOX_AUG.ENABLED: expected False, got True. An exported file runs at one scale; switch "
            "test-time augmentation off."
        )


def build_graph(cfg: CfgNode, detector: Detector) -> DetectorGraph:
    """Build the graph of a detector on the CPU and freeze its weights."""
    detector.eval().requires_grad_(False)
    return DetectorGraph(
        detector, pixels=_pixel_format(cfg), size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY
    )


def _pixel_format(cfg: CfgNode) -> PixelFormat:
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return PixelFormat(mean, std, cfg.INPUT.TO_BGR255)


def build_description(cfg: CfgNode, class_names: Sequence[str], nms: str) -> Description:
    """Build the description stored in the file; ``nms`` is "inside" or "outside"."""
    pixels = _pixel_format(cfg)
    return Description(
        class_names=list(class_names),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        nms=nms,
        nms_threshold=cfg.MODEL.ATSS.NMS_TH,
        score_threshold=cfg.MODEL.ATSS.INFERENCE_TH,
        max_detections=cfg.TEST.DETECTIONS_PER_IMG,
        size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY,
        pixel_mean=list(pixels.mean),
        pixel_std=list(pixels.std),
        pixel_order="BGR in 0..255" if pixels.is_bgr255 else "RGB in 0..1",
        version=__version__,
        grey_bits=cfg.INPUT.GREY_BITS,
    )


def build_parity_check(
    cfg: CfgNode, detector: Detector, images: Sequence[Path], repeats: int = 5
) -> ParityCheck:
    """Build the comparison of exported files with the detector on images resized as configured."""
    return ParityCheck(
        detector,
        build_transform(cfg, training=False),
        Resize([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST),
        build_collate(cfg),
        images,
        repeats=repeats,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        grey_bits=cfg.INPUT.GREY_BITS,
    )
