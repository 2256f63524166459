"""Build the detector from the configuration: the only place where ``cfg`` becomes modules.

Each registry holds the builders of one kind of component; docs/extending.md shows how to add to them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from yacs.config import CfgNode

from atss_core.config import checked
from atss_core.layers import FrozenBatchNorm2d, group_norm
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.assigners import Assigner, AtssAssigner, IouAssigner, SscAssigner, TopkAssigner
from atss_core.modeling.backbone.fpn import FPN
from atss_core.modeling.backbone.resnet import DEPTHS, Norm, ResNet
from atss_core.modeling.box_coder import BoxCoder, PointCoder
from atss_core.modeling.detector import DenseStage, Detector
from atss_core.modeling.head import AtssHead
from atss_core.modeling.losses import AtssLoss, BoxLoss, GiouLoss, SmoothL1Loss
from atss_core.modeling.postprocess import PostProcessor
from atss_core.modeling.registry import Registry


def build_detector(cfg: CfgNode) -> Detector:
    """Build the detector that a configuration describes, with random weights.

    Raises:
        ValueError: if a component does not exist, or values contradict each other.
    """
    cfg = checked(cfg)
    _check_supported(cfg)
    model, atss = cfg.MODEL, cfg.MODEL.ATSS
    backbone = BACKBONES.build(model.BACKBONE.CONV_BODY, cfg)
    neck = NECKS.build(model.NECK.NAME, cfg, backbone.out_channels)
    anchor_generator = build_anchor_generator(cfg)
    num_classes = atss.NUM_CLASSES - 1  # the key counts the background
    head = HEADS.build(model.HEAD.NAME, cfg, num_classes, anchor_generator.num_anchors)
    box_coder = BOX_CODERS.build(atss.REGRESSION_TYPE, cfg)
    box_loss = BOX_LOSSES.build(atss.REG_LOSS_TYPE, cfg, box_coder)
    criterion = LOSSES.build(model.LOSS.NAME, cfg, build_assigner(cfg), box_loss)
    if isinstance(criterion, nn.Module) and [*criterion.parameters(), *criterion.buffers()]:
        raise ValueError(
            f"MODEL.LOSS.NAME: expected a loss without parameters or buffers, which checkpoints lack, "
            f"got {model.LOSS.NAME}. Move them to the head."
        )
    return Detector(
        backbone=nn.Sequential(OrderedDict(body=backbone, fpn=neck)),  # names in the published checkpoints
        rpn=DenseStage(head, anchor_generator),
        criterion=criterion,
        postprocess=PostProcessor(
            anchor_generator,
            box_coder,
            score_threshold=atss.INFERENCE_TH,
            nms_threshold=atss.NMS_TH,
            pre_nms_top_n=atss.PRE_NMS_TOP_N,
            max_detections=cfg.TEST.DETECTIONS_PER_IMG,
        ),
    )


def build_anchor_generator(cfg: CfgNode) -> AnchorGenerator:
    """Build the anchor generator."""
    atss = cfg.MODEL.ATSS
    with _naming("MODEL.ATSS.ANCHOR_SIZES"):
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
        ValueError: for an unknown name, or if an option belongs to another assigner.
    """
    cfg = checked(cfg)
    atss = cfg.MODEL.ATSS
    for key, assigner, off in (("CENTER_SAMPLING_RADIUS", "SSC", 0), ("AT_LEAST_ONE", "ATSS", False)):
        if atss[key] and assigner != atss.POSITIVE_TYPE:
            raise ValueError(
                f"MODEL.ATSS.{key}: expected {off} with POSITIVE_TYPE {atss.POSITIVE_TYPE}, got {atss[key]}. "
                f"It belongs to POSITIVE_TYPE {assigner}."
            )
    return ASSIGNERS.build(atss.POSITIVE_TYPE, cfg)


def _check_supported(cfg: CfgNode) -> None:
    """Refuse what the published configuration can say but this project does not have."""
    others = ("MASK_ON", "KEYPOINT_ON", "FCOS_ON", "RETINANET_ON", "CLS_AGNOSTIC_BBOX_REG")
    for key, only in {"ATSS_ON": True, "RPN_ONLY": True, **dict.fromkeys(others, False)}.items():
        if cfg.MODEL[key] != only:
            raise ValueError(
                f"MODEL.{key}: expected {only}, got {not only}. The only detector here is ATSS: start from "
                f"load_cfg(file), or set the key."
            )


@contextmanager
def _naming(keys: str) -> Iterator[None]:
    """Put configuration keys before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{keys}: {error}") from error


def _group_norm(cfg: CfgNode) -> Callable[[int], nn.GroupNorm]:
    """Return the builder of the group norms of backbone and FPN."""
    return partial(
        group_norm,
        num_groups=cfg.MODEL.GROUP_NORM.NUM_GROUPS,
        channels_per_group=cfg.MODEL.GROUP_NORM.DIM_PER_GP,
        eps=cfg.MODEL.GROUP_NORM.EPSILON,
    )


def _tower_group_norm(cfg: CfgNode) -> Norm:
    """Return the builder of the published towers' group norms, which MODEL.GROUP_NORM does not change."""
    channels = cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS
    if channels % 32 or channels < 64:  # with 1 channel, a group of a single cell has no spread
        raise ValueError(
            f"MODEL.RESNETS.BACKBONE_OUT_CHANNELS: expected 64, 96, 128, ... with TOWER_NORM GN, "
            f"whose 32 groups need at least 2 channels, got {channels}"
        )
    return partial(nn.GroupNorm, 32)


def _resnet_norm(cfg: CfgNode, key: str, *blocks: str) -> Norm:
    """Return the norm in the name of a block, such as "StemWithGN"; CONV_BODY determines the block."""
    names = {f"{block}With{norm}": build for block in blocks for norm, build in NORMS.builders.items()}
    norm = Registry(f"MODEL.RESNETS.{key}", names).build(cfg.MODEL.RESNETS[key], cfg)
    return _group_norm(cfg) if cfg.MODEL.BACKBONE.USE_GN else norm


def _resnet(cfg: CfgNode) -> ResNet:
    resnets = cfg.MODEL.RESNETS
    return ResNet(
        depth=int(cfg.MODEL.BACKBONE.CONV_BODY.split("-")[1]),
        norm=_resnet_norm(cfg, "TRANS_FUNC", "Bottleneck", "BasicBlock"),
        stem_norm=_resnet_norm(cfg, "STEM_FUNC", "Stem"),
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


def _fpn(cfg: CfgNode, in_channels: tuple[int, ...]) -> FPN:
    return FPN(
        in_channels,
        out_channels=cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS,
        norm=_group_norm(cfg) if cfg.MODEL.FPN.USE_GN else None,
        use_relu=cfg.MODEL.FPN.USE_RELU,
        extra_from_c5=cfg.MODEL.RETINANET.USE_C5,
    )


def _atss_head(cfg: CfgNode, num_classes: int, num_anchors: int) -> AtssHead:
    atss = cfg.MODEL.ATSS
    return AtssHead(
        in_channels=cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS,
        num_classes=num_classes,
        num_levels=len(atss.ANCHOR_STRIDES),
        num_anchors=num_anchors,
        num_convs=atss.NUM_CONVS,
        deformable=atss.USE_DCN_IN_TOWER,
        prior_prob=atss.PRIOR_PROB,
        use_relu=atss.REGRESSION_TYPE == "POINT",
        norm=TOWER_NORMS.build(atss.TOWER_NORM, cfg),
        use_centerness=atss.USE_CENTERNESS,
        use_scales=atss.USE_SCALE,
    )


def _atss_loss(cfg: CfgNode, assigner: Assigner, box_loss: BoxLoss) -> AtssLoss:
    return AtssLoss(
        assigner,
        box_loss,
        alpha=cfg.MODEL.ATSS.LOSS_ALPHA,
        gamma=cfg.MODEL.ATSS.LOSS_GAMMA,
        box_weight=cfg.MODEL.ATSS.REG_LOSS_WEIGHT,
        use_centerness=cfg.MODEL.ATSS.USE_CENTERNESS,
    )


def _atss(cfg: CfgNode) -> AtssAssigner:
    atss = cfg.MODEL.ATSS
    return AtssAssigner(atss.TOPK, positives_in_box=atss.POSITIVES_IN_BOX, at_least_one=atss.AT_LEAST_ONE)


def _ssc(cfg: CfgNode) -> SscAssigner:
    if not cfg.MODEL.ATSS.POSITIVES_IN_BOX:
        raise ValueError(
            "MODEL.ATSS.POSITIVES_IN_BOX: expected True with POSITIVE_TYPE SSC, which is defined by it, "
            "got False. Set it to True or choose another POSITIVE_TYPE."
        )
    return SscAssigner(center_radius=cfg.MODEL.ATSS.CENTER_SAMPLING_RADIUS)


@_naming("MODEL.ATSS.FG_IOU_THRESHOLD, BG_IOU_THRESHOLD")
def _iou(cfg: CfgNode) -> IouAssigner:
    atss = cfg.MODEL.ATSS
    return IouAssigner(atss.FG_IOU_THRESHOLD, atss.BG_IOU_THRESHOLD, positives_in_box=atss.POSITIVES_IN_BOX)


def _topk(cfg: CfgNode) -> TopkAssigner:
    return TopkAssigner(cfg.MODEL.ATSS.TOPK, positives_in_box=cfg.MODEL.ATSS.POSITIVES_IN_BOX)


def _point_coder(cfg: CfgNode) -> PointCoder:
    num_anchors = build_anchor_generator(cfg).num_anchors
    if num_anchors != 1:
        raise ValueError(
            f"MODEL.ATSS.REGRESSION_TYPE: expected BOX with {num_anchors} anchors per location, got POINT. "
            f"Use BOX, or one anchor by ANCHOR_SIZES, ASPECT_RATIOS and SCALES_PER_OCTAVE."
        )
    return PointCoder(anchor_scale=cfg.MODEL.ATSS.ANCHOR_SIZES[0] / cfg.MODEL.ATSS.ANCHOR_STRIDES[0])


# Every builder gets the configuration; the comments name its other arguments.
BACKBONES = Registry("MODEL.BACKBONE.CONV_BODY", {f"R-{depth}-FPN-RETINANET": _resnet for depth in DEPTHS})
NECKS = Registry("MODEL.NECK.NAME", {"FPN": _fpn})  # channels of the backbone's outputs
HEADS = Registry("MODEL.HEAD.NAME", {"ATSSHead": _atss_head})  # object classes, anchors per location
LOSSES = Registry("MODEL.LOSS.NAME", {"ATSSLoss": _atss_loss})  # assigner, box loss
ASSIGNERS = Registry("MODEL.ATSS.POSITIVE_TYPE", {"ATSS": _atss, "SSC": _ssc, "IoU": _iou, "TOPK": _topk})
BOX_CODERS = Registry("MODEL.ATSS.REGRESSION_TYPE", {"BOX": lambda cfg: BoxCoder(), "POINT": _point_coder})
BOX_LOSSES = Registry(  # box coder
    "MODEL.ATSS.REG_LOSS_TYPE",
    {
        "GIoU": lambda cfg, box_coder: GiouLoss(box_coder),
        "SmoothL1": lambda cfg, box_coder: SmoothL1Loss(box_coder),
    },
)
NORMS = Registry(  # of the backbone, after "With"
    "MODEL.RESNETS.TRANS_FUNC",
    {
        "FixedBatchNorm": lambda cfg: FrozenBatchNorm2d,
        "BatchNorm": lambda cfg: nn.BatchNorm2d,
        "GN": _group_norm,
    },
)
TOWER_NORMS = Registry("MODEL.ATSS.TOWER_NORM", {"GN": _tower_group_norm, "none": lambda cfg: None})
