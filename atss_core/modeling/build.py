"""From the configuration to a detector: the one place where ``cfg`` becomes modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn
from yacs.config import CfgNode

from atss_core.config import checked
from atss_core.layers import FrozenBatchNorm2d, group_norm
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.assigners import Assigner, AtssAssigner, IouAssigner, SscAssigner, TopkAssigner
from atss_core.modeling.backbone.fpn import FPN
from atss_core.modeling.backbone.resnet import DEPTHS, Norm, ResNet
from atss_core.modeling.box_coder import BoxCoder, Coder, PointCoder
from atss_core.modeling.box_loss import BoxLoss, GiouLoss, SmoothL1Loss
from atss_core.modeling.detector import DenseStage, Detector
from atss_core.modeling.head import AtssHead, tower_group_norm
from atss_core.modeling.loss import AtssLoss
from atss_core.modeling.postprocess import PostProcessor
from atss_core.modeling.registry import Registry
from atss_core.utils.text import shorten

BACKBONES = Registry("MODEL.BACKBONE.CONV_BODY")
ASSIGNERS = Registry("MODEL.ATSS.POSITIVE_TYPE")
BOX_CODERS = Registry("MODEL.ATSS.REGRESSION_TYPE")
BOX_LOSSES = Registry("MODEL.ATSS.REG_LOSS_TYPE")
TOWER_NORMS = Registry("MODEL.ATSS.TOWER_NORM")


def build_detector(cfg: CfgNode) -> Detector:
    """Build the detector that a configuration describes, with fresh weights.

    Raises:
        ValueError: if the configuration asks for parts that are not here, or its values do not fit together.
    """
    cfg = checked(cfg)
    check_supported(cfg)
    anchor_generator = build_anchor_generator(cfg)
    return Detector(
        backbone=BACKBONES.build(cfg.MODEL.BACKBONE.CONV_BODY, cfg),
        rpn=DenseStage(
            head=build_head(cfg, num_anchors=anchor_generator.num_anchors),
            anchor_generator=anchor_generator,
            loss=AtssLoss(
                build_assigner(cfg),
                build_box_loss(cfg),
                alpha=cfg.MODEL.ATSS.LOSS_ALPHA,
                gamma=cfg.MODEL.ATSS.LOSS_GAMMA,
                box_weight=cfg.MODEL.ATSS.REG_LOSS_WEIGHT,
                use_centerness=cfg.MODEL.ATSS.USE_CENTERNESS,
            ),
            postprocess=PostProcessor(
                build_box_coder(cfg),
                score_threshold=cfg.MODEL.ATSS.INFERENCE_TH,
                nms_threshold=cfg.MODEL.ATSS.NMS_TH,
                pre_nms_top_n=cfg.MODEL.ATSS.PRE_NMS_TOP_N,
                max_detections=cfg.TEST.DETECTIONS_PER_IMG,
            ),
        ),
    )


def check_supported(cfg: CfgNode) -> None:
    """Refuse what the published configuration can say but this project does not have.

    Raises:
        ValueError: naming the key and the remedy.
    """
    for key in ("MASK_ON", "KEYPOINT_ON", "FCOS_ON", "RETINANET_ON", "CLS_AGNOSTIC_BBOX_REG"):
        if cfg.MODEL[key]:
            raise ValueError(
                f"MODEL.{key} True belongs to another detector that is not here; set it to False"
            )
    for key in ("ATSS_ON", "RPN_ONLY"):
        if not cfg.MODEL[key]:
            raise ValueError(f"MODEL.{key} must be True: the only detector here is the dense ATSS detector")


def build_norm(cfg: CfgNode, key: str, kinds: tuple[str, ...]) -> Norm:
    """Return the builder of normalisation layers that a key of MODEL.RESNETS names by its ending.

    Args:
        cfg: the configuration.
        key: TRANS_FUNC or STEM_FUNC.
        kinds: what the name may begin with. The block itself follows from CONV_BODY.

    Raises:
        ValueError: for another name.
    """
    norms: dict[str, Norm] = {
        "WithFixedBatchNorm": FrozenBatchNorm2d,
        "WithBatchNorm": nn.BatchNorm2d,
        "WithGN": build_group_norm(cfg),
    }
    named = {kind + ending: norm for kind in kinds for ending, norm in norms.items()}
    name = cfg.MODEL.RESNETS[key]
    if name not in named:
        raise ValueError(f"MODEL.RESNETS.{key} must be one of {', '.join(named)}, got {shorten(name)}")
    return norms["WithGN"] if cfg.MODEL.BACKBONE.USE_GN else named[name]


def build_group_norm(cfg: CfgNode) -> Callable[[int], nn.GroupNorm]:
    """Return the builder of group norms that MODEL.GROUP_NORM describes."""
    return partial(
        group_norm,
        num_groups=cfg.MODEL.GROUP_NORM.NUM_GROUPS,
        channels_per_group=cfg.MODEL.GROUP_NORM.DIM_PER_GP,
        eps=cfg.MODEL.GROUP_NORM.EPSILON,
    )


@BACKBONES.register(*(f"R-{depth}-FPN-RETINANET" for depth in DEPTHS))
def build_resnet_fpn(cfg: CfgNode) -> nn.Sequential:
    """Build a ResNet or ResNeXt backbone with an FPN from P3 to P7."""
    resnets = cfg.MODEL.RESNETS
    body = ResNet(
        depth=int(cfg.MODEL.BACKBONE.CONV_BODY.split("-")[1]),
        norm=build_norm(cfg, "TRANS_FUNC", ("Bottleneck", "BasicBlock")),
        stem_norm=build_norm(cfg, "STEM_FUNC", ("Stem",)),
        stem_channels=resnets.STEM_OUT_CHANNELS,
        out_channels=resnets.RES2_OUT_CHANNELS,
        groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT,
        deformable=resnets.STAGE_WITH_DCN,
        modulated=resnets.WITH_MODULATED_DCN,
        offset_groups=resnets.DEFORMABLE_GROUPS,
    )
    fpn = FPN(
        in_channels=body.out_channels,
        out_channels=resnets.BACKBONE_OUT_CHANNELS,
        norm=build_group_norm(cfg) if cfg.MODEL.FPN.USE_GN else None,
        use_relu=cfg.MODEL.FPN.USE_RELU,
        extra_from_c5=cfg.MODEL.RETINANET.USE_C5,
    )
    return nn.Sequential(OrderedDict(body=body, fpn=fpn))


def build_head(cfg: CfgNode, num_anchors: int) -> AtssHead:
    """Build the dense head for ``num_anchors`` anchors per location."""
    atss = cfg.MODEL.ATSS
    return AtssHead(
        in_channels=cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS,
        num_classes=atss.NUM_CLASSES - 1,  # the key counts the background
        num_levels=len(atss.ANCHOR_STRIDES),
        num_anchors=num_anchors,
        num_convs=atss.NUM_CONVS,
        deformable=atss.USE_DCN_IN_TOWER,
        prior_prob=atss.PRIOR_PROB,
        positive_codes=atss.REGRESSION_TYPE == "POINT",
        norm=TOWER_NORMS.build(atss.TOWER_NORM),
        use_centerness=atss.USE_CENTERNESS,
        use_scales=atss.USE_SCALE,
    )


@TOWER_NORMS.register("GN")
def _gn() -> Norm:
    return tower_group_norm


@TOWER_NORMS.register("none")
def _no_norm() -> None:
    return None


def build_anchor_generator(cfg: CfgNode) -> AnchorGenerator:
    """Build the anchor generator."""
    atss = cfg.MODEL.ATSS
    return AnchorGenerator(
        sizes=atss.ANCHOR_SIZES,
        strides=atss.ANCHOR_STRIDES,
        aspect_ratios=atss.ASPECT_RATIOS,
        scales_per_octave=atss.SCALES_PER_OCTAVE,
        octave=atss.OCTAVE,
    )


def build_assigner(cfg: CfgNode) -> Assigner:
    """Build the assigner that MODEL.ATSS.POSITIVE_TYPE names.

    Raises:
        ValueError: for another name, or if the configuration limits positives in a way that does not fit it.
    """
    atss = cfg.MODEL.ATSS
    if atss.CENTER_SAMPLING_RADIUS and atss.POSITIVE_TYPE != "SSC":
        raise ValueError(
            f"MODEL.ATSS.CENTER_SAMPLING_RADIUS belongs to POSITIVE_TYPE SSC and must be 0 with "
            f"{atss.POSITIVE_TYPE}, got {atss.CENTER_SAMPLING_RADIUS}"
        )
    if atss.AT_LEAST_ONE and atss.POSITIVE_TYPE != "ATSS":
        raise ValueError(
            f"MODEL.ATSS.AT_LEAST_ONE belongs to POSITIVE_TYPE ATSS and must be False with "
            f"{atss.POSITIVE_TYPE}, got {atss.AT_LEAST_ONE}"
        )
    return ASSIGNERS.build(atss.POSITIVE_TYPE, cfg)


@ASSIGNERS.register("ATSS")
def _atss(cfg: CfgNode) -> AtssAssigner:
    return AtssAssigner(
        topk=cfg.MODEL.ATSS.TOPK,
        positives_in_box=cfg.MODEL.ATSS.POSITIVES_IN_BOX,
        at_least_one=cfg.MODEL.ATSS.AT_LEAST_ONE,
    )


@ASSIGNERS.register("SSC")
def _ssc(cfg: CfgNode) -> SscAssigner:
    if not cfg.MODEL.ATSS.POSITIVES_IN_BOX:
        raise ValueError(
            "MODEL.ATSS.POSITIVES_IN_BOX must be True with POSITIVE_TYPE SSC, which is defined by it, "
            "got False; set it to True or choose another POSITIVE_TYPE"
        )
    return SscAssigner(center_radius=cfg.MODEL.ATSS.CENTER_SAMPLING_RADIUS)


@ASSIGNERS.register("IoU")
def _iou(cfg: CfgNode) -> IouAssigner:
    return IouAssigner(
        cfg.MODEL.ATSS.FG_IOU_THRESHOLD,
        cfg.MODEL.ATSS.BG_IOU_THRESHOLD,
        positives_in_box=cfg.MODEL.ATSS.POSITIVES_IN_BOX,
    )


@ASSIGNERS.register("TOPK")
def _topk(cfg: CfgNode) -> TopkAssigner:
    return TopkAssigner(topk=cfg.MODEL.ATSS.TOPK, positives_in_box=cfg.MODEL.ATSS.POSITIVES_IN_BOX)


def build_box_loss(cfg: CfgNode) -> BoxLoss:
    """Build the box loss that MODEL.ATSS.REG_LOSS_TYPE names."""
    return BOX_LOSSES.build(cfg.MODEL.ATSS.REG_LOSS_TYPE, build_box_coder(cfg))


@BOX_LOSSES.register("GIoU")
def _giou(box_coder: Coder) -> GiouLoss:
    return GiouLoss(box_coder)


@BOX_LOSSES.register("SmoothL1")
def _smooth_l1(box_coder: Coder) -> SmoothL1Loss:
    return SmoothL1Loss(box_coder)


def build_box_coder(cfg: CfgNode) -> Coder:
    """Build the box coder that MODEL.ATSS.REGRESSION_TYPE names."""
    return BOX_CODERS.build(cfg.MODEL.ATSS.REGRESSION_TYPE, cfg)


@BOX_CODERS.register("BOX")
def _box(cfg: CfgNode) -> BoxCoder:
    return BoxCoder()


@BOX_CODERS.register("POINT")
def _point(cfg: CfgNode) -> PointCoder:
    generator = build_anchor_generator(cfg)
    if generator.num_anchors != 1:
        raise ValueError(
            f"MODEL.ATSS.REGRESSION_TYPE POINT needs one anchor a place, but ANCHOR_SIZES, ASPECT_RATIOS and "
            f"SCALES_PER_OCTAVE make {generator.num_anchors}; use BOX"
        )
    return PointCoder(anchor_scale=cfg.MODEL.ATSS.ANCHOR_SIZES[0] / cfg.MODEL.ATSS.ANCHOR_STRIDES[0])
