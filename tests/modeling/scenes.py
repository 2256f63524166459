"""Anchors, boxes and a small detector that several tests share."""

import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from atss_core.modeling.anchors import AnchorGenerator
from tests import golden

GRIDS = [(100, 152), (50, 76), (25, 38), (13, 19), (7, 10)]
STRIDES = (8, 16, 32, 64, 128)
SIZES = (64, 128, 256, 512, 1024)
GENERATORS = {"A1": AnchorGenerator(SIZES, STRIDES), "A9": AnchorGenerator(SIZES, STRIDES, (0.5, 1, 2), 3)}
SCENES = [*(f"{a}_G{g}" for a in GENERATORS for g in (1, 3, 17, 120)), "A1_edge"]


def random_boxes(num_boxes, width, height, *, seed, whole_pixels):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_boxes, 2, generator=random) * torch.tensor([width * 1.2, height * 1.2])
    corner -= torch.tensor([width * 0.1, height * 0.1])
    sides = torch.rand(num_boxes, 2, generator=random) ** 3 * 400
    boxes = torch.cat([corner, corner + sides], dim=1)
    return boxes.round() if whole_pixels else boxes


R50 = golden.ROOT / "configs" / "atss" / "atss_R_50_FPN_1x.yaml"
SMALL = [
    *("MODEL.BACKBONE.CONV_BODY", "R-18-FPN-RETINANET", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64"),
    *("MODEL.ATSS.NUM_CONVS", "1", "MODEL.ATSS.NUM_CLASSES", "4"),
]


def small(*opts):
    return build_detector(load_cfg(R50, [*SMALL, *opts]))
