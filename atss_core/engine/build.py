"""From the configuration to a device and to what detects on it."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from yacs.config import CfgNode

from atss_core.data import build_test_transform
from atss_core.engine.inference import Inference, SingleScale
from atss_core.engine.tta import MultiScale, Scale, nms, vote
from atss_core.modeling import Detector
from atss_core.structures import BoxList
from atss_core.utils.env import choose_device

logger = logging.getLogger(__name__)

# Below this short side, in pixels, the published code caps the long side as in plain testing.
PLAIN_SHORT_SIDE = 800


def build_device(cfg: CfgNode) -> torch.device:
    """Return the device that MODEL.DEVICE names; raises as ``choose_device``."""
    return choose_device(cfg.MODEL.DEVICE)


def skips_unreadable(cfg: CfgNode) -> bool:
    """Tell whether images that cannot be read are skipped wherever there are several."""
    return bool(cfg.DATALOADER.SKIP_CORRUPT)


def move_detector(cfg: CfgNode, detector: Detector, device: torch.device) -> Detector:
    """Bring a detector to its device, with the layout in memory and the compilation that MODEL asks for."""
    detector.to(device)
    if cfg.MODEL.CHANNELS_LAST:
        detector.to(memory_format=torch.channels_last)
    if cfg.MODEL.COMPILE:
        # In place, so that state-dict keys stay as they are.
        detector.backbone.compile(dynamic=True)
        detector.rpn.head.compile(dynamic=True)
    return detector


def build_inference(cfg: CfgNode, detector: Detector, device: torch.device) -> Inference:
    """Build what detects with ``detector``, which is on ``device``, in one size or as TEST.BBOX_AUG says.

    Raises:
        ValueError: if the keys of TEST.BBOX_AUG do not fit together.
    """
    cfg.check()
    if not cfg.TEST.BBOX_AUG.ENABLED:
        return SingleScale(detector, device)
    return MultiScale(
        detector,
        build_scales(cfg),
        build_merge(cfg, detector.rpn.postprocess.nms_threshold),
        is_nms_joint=not cfg.TEST.BBOX_AUG.VOTE,
        size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY,
        device=device,
    )


def build_scales(cfg: CfgNode) -> list[Scale]:
    """Build the scales of test-time augmentation: that of plain testing, and TEST.BBOX_AUG.SCALES.

    Raises:
        ValueError: if SCALE_RANGES are not pairs smallest < largest, one for each of SCALES.
    """
    aug = cfg.TEST.BBOX_AUG
    ranges = aug.SCALE_RANGES if aug.VOTE else ()
    if ranges and (len(ranges) != len(aug.SCALES) or not all(high > low for low, high in ranges)):
        raise ValueError(
            f"TEST.BBOX_AUG.SCALE_RANGES must be empty or have a pair 0 <= smallest < largest for each of "
            f"the {len(aug.SCALES)} sizes in SCALES, got {aug.SCALE_RANGES}"
        )
    plain = build_test_transform(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    scales = [Scale(plain, is_flipped=aug.H_FLIP)]
    for i, size in enumerate(aug.SCALES):
        max_size = cfg.INPUT.MAX_SIZE_TEST if size < PLAIN_SHORT_SIDE else aug.MAX_SIZE
        transform = build_test_transform(cfg, size, max_size)
        scales.append(Scale(transform, aug.SCALE_H_FLIP, tuple(ranges[i]) if ranges else None))
    return scales


def build_merge(cfg: CfgNode, nms_threshold: float) -> Callable[[BoxList], BoxList]:
    """Build the merge of the detections of all scales; ``nms_threshold`` is that of the post-processor."""
    aug = cfg.TEST.BBOX_AUG
    if not aug.VOTE:
        if aug.SCALE_RANGES or aug.MERGE_TYPE != "vote":
            logger.warning(
                "TEST.BBOX_AUG.MERGE_TYPE and SCALE_RANGES count only with VOTE True, as published"
            )
        return partial(nms, threshold=nms_threshold, max_detections=cfg.TEST.DETECTIONS_PER_IMG)
    # The published code caps merged detections with the key of the candidates, not DETECTIONS_PER_IMG.
    max_detections = cfg.MODEL.ATSS.PRE_NMS_TOP_N
    if aug.MERGE_TYPE == "nms":
        return partial(nms, threshold=nms_threshold, max_detections=max_detections)
    is_soft = aug.MERGE_TYPE == "soft-vote"
    return partial(vote, threshold=aug.VOTE_TH, soft=is_soft, max_detections=max_detections)
