import pytest
import torch
from torch import nn

from atss_core.config import load_cfg
from atss_core.layers import FrozenBatchNorm2d
from atss_core.modeling import build_detector
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.build import LOSSES
from atss_core.modeling.registry import Registry
from atss_core.structures import BoxList, ImageList
from tests import golden
from tests.conftest import QUICK, TINY
from tests.modeling.scenes import R50, small


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MODEL.BACKBONE.CONV_BODY", "R-34-FPN-RETINANET"],
        [
            "MODEL.RESNETS.TRANS_FUNC",
            "BasicBlockWithBatchNorm",
            "MODEL.RESNETS.STEM_FUNC",
            "StemWithBatchNorm",
        ],
        ["MODEL.BACKBONE.USE_GN", "True", "MODEL.GROUP_NORM.NUM_GROUPS", "8"],
        ["MODEL.FPN.USE_GN", "True", "MODEL.FPN.USE_RELU", "True"],
        ["MODEL.RETINANET.USE_C5", "True"],
        ["MODEL.ATSS.ASPECT_RATIOS", "(0.5, 1.0, 2.0)", "MODEL.ATSS.SCALES_PER_OCTAVE", "3"],
        ["MODEL.ATSS.ANCHOR_SIZES", "((32, 45.3), (64, 91), (128, 181), (256, 362), (512, 724))"],
        ["MODEL.ATSS.USE_DCN_IN_TOWER", "True"],
        ["MODEL.ATSS.REGRESSION_TYPE", "POINT", "MODEL.ATSS.POSITIVE_TYPE", "SSC"],
        ["MODEL.ATSS.TOWER_NORM", "none", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "24"],
        ["MODEL.ATSS.TOWER_NORM", "none", "MODEL.ATSS.USE_DCN_IN_TOWER", "True"],
        ["MODEL.ATSS.REG_LOSS_TYPE", "SmoothL1"],
        ["MODEL.ATSS.REG_LOSS_TYPE", "SmoothL1", "MODEL.ATSS.REGRESSION_TYPE", "POINT"],
        ["MODEL.ATSS.USE_CENTERNESS", "False", "MODEL.ATSS.USE_SCALE", "False"],
        ["MODEL.ATSS.POSITIVES_IN_BOX", "False"],
        ["MODEL.ATSS.POSITIVE_TYPE", "SSC", "MODEL.ATSS.CENTER_SAMPLING_RADIUS", "1.5"],
    ],
)
def test_variant_trains_and_detects(opts):
    torch.manual_seed(0)
    model = small(*opts)
    images = ImageList.from_tensors([torch.randn(3, 70, 90), torch.randn(3, 64, 64)], 32)
    targets = [
        BoxList(torch.tensor([[5.0, 5.0, 50.0, 60.0]]), images.image_sizes[0], labels=torch.tensor([3])),
        BoxList(torch.zeros(0, 4), images.image_sizes[1], labels=torch.zeros(0, dtype=torch.int64)),
    ]
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable)
    assert any((p.grad != 0).any() for p in trainable)
    assert len(model.eval()(images)) == 2


def test_backbones_have_the_requested_norm():
    assert isinstance(small().backbone.body.stem.bn1, FrozenBatchNorm2d)
    model = small("MODEL.RESNETS.TRANS_FUNC", "BasicBlockWithBatchNorm")
    assert isinstance(model.backbone.body.layer1[0].bn1, nn.BatchNorm2d)
    assert isinstance(model.backbone.body.stem.bn1, FrozenBatchNorm2d)
    with pytest.raises(
        ValueError, match=r"TRANS_FUNC: expected one of BottleneckWithFixedBatchNorm, .* got 'Bottleneck'"
    ):
        small("MODEL.RESNETS.TRANS_FUNC", "Bottleneck")


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_stages_do_not_move(frozen):
    norms = [
        "MODEL.RESNETS.TRANS_FUNC",
        "BasicBlockWithBatchNorm",
        "MODEL.RESNETS.STEM_FUNC",
        "StemWithBatchNorm",
    ]
    backbone = small(*norms, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", str(frozen)).train().backbone.body
    stages = [backbone.stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    backbone(torch.randn(2, 3, 64, 64))
    for number, stage in enumerate(stages):
        norm = next(m for m in stage.modules() if isinstance(m, nn.BatchNorm2d))
        assert (norm.running_mean.abs().sum() == 0) == (number < frozen)
        assert all(p.requires_grad == (number >= frozen) for p in stage.parameters())


def head_keys(*opts):
    return set(small(*opts, "MODEL.ATSS.NUM_CONVS", "2").rpn.head.state_dict())


def test_layers_of_the_head_are_optional():
    default = head_keys()
    scales = {f"scales.{level}.scale" for level in range(5)}
    assert default - head_keys("MODEL.ATSS.USE_SCALE", "False") == scales
    centerness = {"centerness.weight", "centerness.bias"}
    assert default - head_keys("MODEL.ATSS.USE_CENTERNESS", "False") == centerness
    towers = {f"{name}_tower" for name in ("cls", "bbox")}
    norms = {f"{tower}.{i}.{kind}" for tower in towers for i in (1, 4) for kind in ("weight", "bias")}
    assert norms < default
    # Convolution, ReLU, convolution, ReLU.
    plain = {key for key in head_keys("MODEL.ATSS.TOWER_NORM", "none") if "_tower." in key}
    assert plain == {f"{tower}.{i}.{kind}" for tower in towers for i in (0, 2) for kind in ("weight", "bias")}
    for unchanged in (["REG_LOSS_TYPE", "SmoothL1"], ["POSITIVES_IN_BOX", "False"]):
        assert head_keys(f"MODEL.ATSS.{unchanged[0]}", unchanged[1]) == default


def test_encoded_boxes_are_scaled_only_on_request():
    features = [torch.randn(1, 64, 3, 3)] * 5
    for use_scale, factor in (("True", 3.0), ("False", 1.0)):
        head = small("MODEL.ATSS.USE_SCALE", use_scale).rpn.head
        before = head(features).encoded_boxes[0]
        for scale in head.scales:
            for parameter in scale.parameters():
                parameter.data *= 3
        assert torch.equal(head(features).encoded_boxes[0], before * factor)


def test_new_keys_written_out_are_the_defaults():
    keys = ("TOWER_NORM", "REG_LOSS_TYPE", "POSITIVES_IN_BOX", "USE_CENTERNESS", "USE_SCALE")
    values = ("GN", "GIoU", "True", "True", "True")
    opts = [text for k, v in zip(keys, values, strict=True) for text in (f"MODEL.ATSS.{k}", v)]
    opts += ["MODEL.NECK.NAME", "FPN", "MODEL.HEAD.NAME", "ATSSHead", "MODEL.LOSS.NAME", "ATSSLoss"]
    assert load_cfg(R50, [*opts, "MODEL.ATSS.CENTER_SAMPLING_RADIUS", "0.0"]) == load_cfg(R50)


def test_stride_in_1x1_or_3x3():
    for in_1x1, strides in ((True, (2, 1)), (False, (1, 2))):
        model = build_detector(load_cfg(R50, ["MODEL.RESNETS.STRIDE_IN_1X1", str(in_1x1)]))
        block = model.backbone.body.layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_two_models_live_side_by_side():
    first, second = small("MODEL.ATSS.TOPK", "3"), small("MODEL.ATSS.TOPK", "27")
    assert first.criterion.assigner.topk == 3
    assert second.criterion.assigner.topk == 27


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.MASK_ON", "True"],
            "MODEL.MASK_ON: expected False, got True. The only detector here is ATSS",
        ),
        (["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON: expected False"),
        (["MODEL.RETINANET_ON", "True"], "MODEL.RETINANET_ON: expected False"),
        (["MODEL.ATSS_ON", "False"], "MODEL.ATSS_ON: expected True"),
        (["MODEL.RPN_ONLY", "False"], "MODEL.RPN_ONLY: expected True"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "must be 'GeneralizedRCNN', got 'RetinaNet'"),
        (["MODEL.RESNETS.RES5_DILATION", "2"], "RES5_DILATION must be 1, got 2"),
        (
            ["MODEL.BACKBONE.CONV_BODY", "R-50-C4"],
            "CONV_BODY: expected one of R-18-FPN-RETINANET, .*got 'R-50-C4'",
        ),
        (["MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "6"], r"FREEZE_CONV_BODY_AT must be in \[0, 5\], got 6"),
        (
            ["MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "48"],
            "BACKBONE_OUT_CHANNELS: expected 64, 96, 128, ... .*, got 48",
        ),
        (["MODEL.RESNETS.NUM_GROUPS", "32"], "R-18: expected no groups .* got 32 groups"),
        (
            ["MODEL.ATSS.ANCHOR_SIZES", "(64,)"],
            "ANCHOR_SIZES: expected one size per stride, got 1 sizes and 5 strides",
        ),
        (
            ["MODEL.ATSS.ANCHOR_SIZES", "((8, 9), 16, 32, 64, 128)"],
            "ANCHOR_SIZES: expected the same number of sizes on every level",
        ),
        (
            ["MODEL.ATSS.ANCHOR_STRIDES", "(4, 8, 16, 32, 64)"],
            r"ANCHOR_STRIDES must be \(8, 16, 32, 64, 128\), got \(4, 8, 16, 32, 64\)",
        ),
        (["MODEL.ATSS.TOPK", "0"], r"TOPK must be in \[1, 100000\], got 0"),
        (
            ["MODEL.ATSS.REGRESSION_TYPE", "POINT", "MODEL.ATSS.SCALES_PER_OCTAVE", "3"],
            "REGRESSION_TYPE: expected BOX with 3 anchors per location, got POINT",
        ),
        (["MODEL.ATSS.REGRESSION_TYPE", "box"], "REGRESSION_TYPE: expected one of BOX, POINT, got 'box'"),
        (["MODEL.ATSS.TOWER_NORM", "BN"], "TOWER_NORM: expected one of GN, none, got 'BN'"),
        (["MODEL.ATSS.REG_LOSS_TYPE", "L1"], "REG_LOSS_TYPE: expected one of GIoU, SmoothL1, got 'L1'"),
        (
            ["MODEL.ATSS.CENTER_SAMPLING_RADIUS", "1.5"],
            "CENTER_SAMPLING_RADIUS: expected 0 .* POSITIVE_TYPE SSC",
        ),
        (
            ["MODEL.ATSS.POSITIVE_TYPE", "IoU", "MODEL.ATSS.BG_IOU_THRESHOLD", "0.6"],
            "BG_IOU_THRESHOLD: negative_iou: expected at most positive_iou 0.5, got 0.6",
        ),
        (["MODEL.NECK.NAME", "fpn"], "NECK.NAME: expected one of FPN, got 'fpn'"),
        (["MODEL.HEAD.NAME", "ATSSHEAD"], "HEAD.NAME: expected one of ATSSHead, .* mean 'ATSSHead'"),
        (["MODEL.LOSS.NAME", "ATSS"], "LOSS.NAME: expected one of ATSSLoss, .* mean 'ATSSLoss'"),
    ],
)
def test_unsupported_values_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        small(*opts)


def test_training_without_targets_is_refused():
    with pytest.raises(ValueError, match="targets: expected ground truth in training mode"):
        small().train()(ImageList.from_tensors([torch.zeros(3, 32, 32)]))


def test_registry_refuses_duplicates():
    registry = Registry("KEY")
    registry.register("a")(dict)
    with pytest.raises(ValueError, match="KEY: 'a' is registered already"):
        registry.register("a")(list)


@pytest.mark.parametrize(
    ("kind", "options"), [("A1", {}), ("A9", {"aspect_ratios": (0.5, 1, 2), "scales_per_octave": 3})]
)
def test_anchors_golden(kind, options):
    expected = golden.arrays("anchors")
    strides = (8, 16, 32, 64, 128)
    generator = AnchorGenerator((64, 128, 256, 512, 1024), strides, **options)
    anchors = generator([(100, 152), (50, 76), (25, 38), (13, 19), (7, 10)])
    levels = anchors.boxes.split(anchors.counts)
    for level, (boxes, cell) in enumerate(zip(levels, generator.cell_anchors, strict=True)):
        assert len(boxes) == expected[f"{kind}/L{level}/count"]
        assert cell.tolist() == expected[f"{kind}/L{level}/cell"].tolist()
        assert boxes[:12].tolist() == expected[f"{kind}/L{level}/first"].tolist()
        assert boxes[-12:].tolist() == expected[f"{kind}/L{level}/last"].tolist()
        assert boxes[expected[f"{kind}/L{level}/idx"]].tolist() == expected[f"{kind}/L{level}/rows"].tolist()


def test_several_sizes_of_a_level_follow_each_other():
    anchors = AnchorGenerator(((16, 40), (32, 80)), (8, 16), aspect_ratios=(1.0, 4.0))
    assert anchors.num_anchors == 4
    widths = [(cell[:, 2] - cell[:, 0]).tolist() for cell in anchors.cell_anchors]
    # Ratio by ratio, then size by size; a ratio of 4 halves the width.
    assert widths == [[15, 39, 7, 19], [31, 79, 15, 39]]


def test_a_loss_with_parameters_is_refused():
    class LearnedLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    LOSSES.builders["Learned"] = lambda cfg, assigner, box_loss: LearnedLoss()
    try:
        with pytest.raises(ValueError, match=r"MODEL\.LOSS\.NAME: expected a loss without parameters"):
            build_detector(load_cfg(QUICK, [*TINY, "MODEL.LOSS.NAME", "Learned"]))
    finally:
        del LOSSES.builders["Learned"]
