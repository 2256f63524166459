import numpy as np
import pytest
import torch

from atss_core.data import Batch
from atss_core.engine import TrainingStep
from atss_core.modeling.anchors import AnchorGenerator
from atss_core.modeling.assigners import BACKGROUND, IGNORED, AtssAssigner
from atss_core.modeling.box_coder import BoxCoder, PointCoder
from atss_core.modeling.head import HeadOutputs, flatten_level
from atss_core.modeling.losses import (
    RETINANET_BETA,
    AtssLoss,
    GiouLoss,
    SmoothL1Loss,
    centerness_target,
    giou_loss,
    share_normalizers,
)
from atss_core.structures import BoxList, ImageList
from tests import golden
from tests.modeling.scenes import GENERATORS, GRIDS, SCENES, small

CODERS = {"BOX": BoxCoder(), "POINT": PointCoder(8.0)}
SMALL_GRIDS = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]


def outputs(num_images=1, num_classes=3, grids=SMALL_GRIDS, seed=0):
    random = torch.Generator().manual_seed(seed)

    def maps(channels):
        return [torch.randn(num_images, channels, h, w, generator=random).requires_grad_() for h, w in grids]

    return HeadOutputs(maps(num_classes), maps(4), maps(1))


def atss_loss(**options):
    return AtssLoss(AtssAssigner(9), GiouLoss(BoxCoder()), **options)


def match_and_compute(criterion, predicted, anchors, targets):
    return criterion(predicted, criterion.match(anchors, targets))


@pytest.mark.parametrize(
    ("kind", "scene"),
    [(k, s) for k in CODERS for s in SCENES if s.startswith("A1") and (k, s) != ("POINT", "A1_edge")],
)
def test_coders_golden(kind, scene):
    expected = golden.arrays(f"assign_{scene}")
    anchors = GENERATORS["A1"](GRIDS)
    matched = AtssAssigner(9)(anchors, [torch.from_numpy(expected["boxes"])])[0]
    positives = torch.from_numpy(expected["ATSS9/pos_idx"][expected["ATSS9/reg_sel"]]).long()
    boxes = torch.from_numpy(expected["boxes"])[matched[positives]]
    encoded = CODERS[kind].encode(boxes, anchors.boxes[positives])
    assert np.allclose(encoded, expected[f"ATSS9/reg_{kind}"], rtol=1e-5, atol=1e-5)
    assert torch.allclose(CODERS[kind].decode(encoded, anchors.boxes[positives]), boxes, atol=1e-2)


@pytest.mark.parametrize("kind", CODERS)
def test_giou_golden(kind):
    expected = golden.arrays("giou")
    anchors, target, weight = (
        torch.from_numpy(expected[f"{kind}/{k}"]) for k in ("anchors", "target", "weight")
    )
    encoded = torch.from_numpy(expected[f"{kind}/pred"]).requires_grad_()
    decoded = CODERS[kind].decode(encoded, anchors)
    losses = giou_loss(decoded, CODERS[kind].decode(target, anchors))
    (losses * weight).sum().backward()
    assert np.allclose(decoded.detach(), expected[f"{kind}/decoded_pred"], atol=1e-2, rtol=1e-6)
    assert np.allclose(losses.detach(), expected[f"{kind}/loss_each"], atol=1e-5)
    assert np.allclose(encoded.grad, expected[f"{kind}/grad_pred"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_giou_of_half_types_is_computed_in_float32(dtype):
    boxes = torch.tensor([[0.0, 0, 512, 512], [0, 0, 256, 512]])  # in float16 the areas are infinite
    targets = boxes[:1].expand(2, 4)
    losses = giou_loss(boxes.to(dtype), targets.to(dtype))
    assert losses.tolist() == pytest.approx([0, 0.5], abs=1e-6)


@pytest.mark.parametrize("kind", CODERS)
def test_centerness_golden(kind):
    expected = golden.arrays("centerness")
    anchors, encoded = (torch.from_numpy(expected[f"{kind}/{k}"]) for k in ("anchors", "reg_targets"))
    centerness = centerness_target(anchors, CODERS[kind].decode(encoded, anchors))
    assert np.allclose(centerness, expected[f"{kind}/centerness"], atol=1e-4)


def test_decoded_sides_are_capped_and_finite():
    anchors = torch.tensor([[0.0, 0.0, 15.0, 15.0]])
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), anchors)
    assert (decoded[0, 2] - decoded[0, 0] + 1).item() == pytest.approx(1000)


def test_flattening_follows_the_order_of_the_anchors():
    level = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)  # A = 2 anchors, 3 values
    flat = flatten_level(level, 3)
    assert flat.shape == (2, 12, 3)
    # Row 1, column 2, anchor 1 is entry ((1 * 3) + 2) * 2 + 1.
    assert torch.equal(flat[1, 11], level[1, 3:6, 1, 2])


def test_batch_is_the_sum_of_its_images():
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    targets = [
        BoxList(torch.tensor([[4.0, 4.0, 30.0, 40.0]]), (64, 64), labels=torch.tensor([2])),
        BoxList(
            torch.tensor([[0.0, 0.0, 60.0, 60.0], [9.0, 9, 20, 20]]), (64, 64), labels=torch.tensor([1, 3])
        ),
    ]
    both = outputs(num_images=2)
    loss = atss_loss()
    counts = [loss.match(anchors, [t]).is_positive.sum().item() for t in targets]
    together = match_and_compute(loss, both, anchors, targets)["loss_cls"] * sum(counts)
    alone = sum(
        match_and_compute(
            loss,
            HeadOutputs(*([level[i : i + 1] for level in f] for f in vars(both).values())),
            anchors,
            [targets[i]],
        )["loss_cls"]
        * counts[i]
        for i in range(2)
    )
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("num_boxes", [[0], [0, 0], [0, 2]])
def test_images_without_boxes_train(num_boxes):
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 20.0, 50.0, 60.0]])
    targets = [BoxList(boxes[:n], (64, 64), labels=torch.ones(n, dtype=torch.int64)) for n in num_boxes]
    predicted = outputs(num_images=len(num_boxes))
    losses = match_and_compute(atss_loss(), predicted, anchors, targets)
    sum(losses.values()).backward()
    assert losses["loss_cls"] > 0
    assert (losses["loss_reg"] > 0) == (sum(num_boxes) > 0)
    for level in (*predicted.cls_logits, *predicted.encoded_boxes, *predicted.centerness):
        assert torch.isfinite(level.grad).all()


def test_huge_predictions_of_background_do_not_reach_the_gradient():
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    predicted = outputs()
    predicted.encoded_boxes[0].data[0, :, 0, 0] = torch.inf
    target = BoxList(torch.tensor([[30.0, 30.0, 60.0, 60.0]]), (64, 64), labels=torch.tensor([1]))
    losses = match_and_compute(atss_loss(), predicted, anchors, [target])
    sum(losses.values()).backward()
    assert torch.isfinite(losses["loss_reg"])
    assert torch.isfinite(predicted.encoded_boxes[0].grad).all()


def test_ignored_anchors_count_for_nothing():
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    matched = torch.full((1, len(anchors)), BACKGROUND)
    target = BoxList(torch.tensor([[4.0, 4.0, 30.0, 40.0]]), (64, 64), labels=torch.tensor([2]))
    predicted = outputs()

    def class_loss():
        loss = AtssLoss(lambda anchors, boxes: matched, GiouLoss(BoxCoder()))
        return match_and_compute(loss, predicted, anchors, [target])["loss_cls"].item()

    everything = class_loss()
    matched[:] = IGNORED
    assert class_loss() == 0
    matched[0, 0] = BACKGROUND
    assert 0 < class_loss() < everything


def test_targets_need_labels():
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    with pytest.raises(ValueError, match="targets: expected labels in training"):
        atss_loss().match(anchors, [BoxList(torch.zeros(1, 4), (64, 64))])


@pytest.mark.parametrize("use_centerness", [True, False])
def test_head_and_loss_must_agree_on_centerness(use_centerness):
    anchors, target, _, predicted, _ = one_image()
    if use_centerness:
        predicted = HeadOutputs(predicted.cls_logits, predicted.encoded_boxes, None)
    criterion = atss_loss(use_centerness=use_centerness)
    with pytest.raises(ValueError, match=f"use_centerness: expected {not use_centerness} like the head"):
        match_and_compute(criterion, predicted, anchors, [target])


def test_grids_that_differ_from_those_of_the_anchors_are_refused():
    anchors = AnchorGenerator((16, 32), (8, 16))([(8, 8), (4, 4)])
    target = BoxList(torch.tensor([[30.0, 30.0, 60.0, 60.0]]), (64, 64), labels=torch.tensor([1]))
    predicted = outputs(grids=[(8, 8), (3, 4)])
    with pytest.raises(ValueError, match=r"expected levels of \(\(8, 8\), \(4, 4\)\) cells"):
        match_and_compute(atss_loss(), predicted, anchors, [target])


def test_centerness_outside_is_zero_and_never_undefined():
    anchor = torch.tensor([[92.0, 92.0, 107.0, 107.0]])  # its centre is (99.5, 99.5)
    x = 99.5
    boxes = torch.tensor(
        [
            [x - 10, x - 10, x + 10, x + 10],  # at the centre
            [x - 5, x - 10, x + 20, x + 10],  # a quarter across
            [x + 1, x - 10, x + 9, x + 10],  # outside across
            [x + 1, x + 1, x + 9, x + 9],  # outside both ways, where two negative ratios meet
            [x - 9, x + 1, x - 1, x + 9],
            [x, x - 10, x, x + 10],  # no extent, on the point
            [x + 3, x - 10, x + 3, x + 10],  # no extent, beside it
        ]
    )
    assert centerness_target(anchor, boxes).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", CODERS)
def test_smooth_l1_equals_a_loop(kind):
    assert RETINANET_BETA == 0.11
    anchors = AnchorGenerator((32,), (8,))([(2, 3)]).boxes
    boxes = anchors + torch.tensor([1.0, -2.0, 6.0, 3.0])
    random = torch.Generator().manual_seed(0)
    predictions = CODERS[kind].encode(boxes, anchors) + 0.2 * torch.randn(6, 4, generator=random)
    predictions[0, 0] += 30.0
    expected = []
    for encoded, targets in zip(
        predictions.tolist(), CODERS[kind].encode(boxes, anchors).tolist(), strict=True
    ):
        differences = [abs(a - b) for a, b in zip(encoded, targets, strict=True)]
        expected.append(sum(0.5 * d * d / 0.11 if d < 0.11 else d - 0.055 for d in differences) / 4)
    losses = SmoothL1Loss(CODERS[kind])(predictions, anchors, boxes)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(
        losses,
        torch.nn.functional.smooth_l1_loss(
            predictions, CODERS[kind].encode(boxes, anchors), beta=0.11, reduction="none"
        ).mean(dim=1),
    )


def one_image():
    """Anchors, ground truth, matched_idx, head outputs and the encoded boxes in them."""
    anchors = AnchorGenerator((16, 32, 64, 128, 256), (8, 16, 32, 64, 128))(SMALL_GRIDS)
    target = BoxList(torch.tensor([[9.0, 8.0, 52.0, 60.0]]), (64, 64), labels=torch.tensor([2]))
    matched = torch.full((1, len(anchors)), BACKGROUND)
    matched[0, [10, 20, 70]] = 0  # the first lies outside the box
    predicted = outputs()
    encoded = torch.cat([flatten_level(level, 4) for level in predicted.encoded_boxes], dim=1)[0]
    return anchors, target, matched, predicted, encoded


@pytest.mark.parametrize("kind", [GiouLoss, SmoothL1Loss])
@pytest.mark.parametrize("use_centerness", [True, False])
def test_box_term_is_the_weighted_mean_of_the_positives(kind, use_centerness):
    anchors, target, matched, predicted, encoded = one_image()
    if not use_centerness:
        predicted = HeadOutputs(predicted.cls_logits, predicted.encoded_boxes, None)
    box_loss = kind(BoxCoder())
    loss = AtssLoss(lambda anchors, boxes: matched, box_loss, box_weight=3.0, use_centerness=use_centerness)
    losses = match_and_compute(loss, predicted, anchors, [target])
    total = total_weight = 0.0
    for index in (10, 20, 70):
        anchor = anchors.boxes[index]
        weight = centerness_target(anchor, target.boxes[0]).item() if use_centerness else 1.0
        total += weight * box_loss(encoded[index], anchor, target.boxes[0]).item()
        total_weight += weight
    assert losses["loss_reg"].item() == pytest.approx(3 * total / total_weight, rel=1e-5)
    assert ("loss_centerness" in losses) == use_centerness
    if not use_centerness:
        assert total_weight == 3


@pytest.mark.parametrize("kind", [GiouLoss, SmoothL1Loss])
@pytest.mark.parametrize("num_boxes", [0, 2])
def test_losses_without_centerness_train(kind, num_boxes):
    anchors, *_ = one_image()
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 20.0, 50.0, 60.0]])[:num_boxes]
    target = BoxList(boxes, (64, 64), labels=torch.ones(num_boxes, dtype=torch.int64))
    predicted = outputs()
    predicted = HeadOutputs(predicted.cls_logits, predicted.encoded_boxes, None)
    predicted.encoded_boxes[0].data[0, :, 7, 7] = torch.inf  # of background
    loss = AtssLoss(AtssAssigner(9), kind(BoxCoder()), use_centerness=False)
    losses = match_and_compute(loss, predicted, anchors, [target])
    assert losses.keys() == {"loss_cls", "loss_reg"}
    assert (losses["loss_reg"] > 0) == (num_boxes > 0)
    sum(losses.values()).backward()
    for level in (*predicted.cls_logits, *predicted.encoded_boxes):
        assert torch.isfinite(level.grad).all()


def test_micro_batches_without_centerness_add_up():
    anchors, target, *_ = one_image()
    other = BoxList(torch.tensor([[0.0, 0.0, 60.0, 60.0]]), (64, 64), labels=torch.tensor([1]))
    loss = AtssLoss(AtssAssigner(9), GiouLoss(BoxCoder()), use_centerness=False)
    both = outputs(num_images=2)
    whole = match_and_compute(
        loss, HeadOutputs(both.cls_logits, both.encoded_boxes, None), anchors, [target, other]
    )
    matched = share_normalizers([loss.match(anchors, [t]) for t in (target, other)])
    for each in matched:
        assert each.normalizers[0] == each.normalizers[1] == sum(m.is_positive.sum() for m in matched)
    for key in whole:
        total = 0.0
        for i in range(2):
            maps = (
                [level[i : i + 1] for level in levels] for levels in (both.cls_logits, both.encoded_boxes)
            )
            total += loss(HeadOutputs(*maps, None), matched[i])[key].item()
        assert total == pytest.approx(whole[key].item(), rel=1e-5)


def test_assigner_is_called_once_per_micro_batch():
    torch.manual_seed(0)
    detector = small().train()
    assigner, calls = detector.criterion.assigner, []

    def counted(anchors, boxes):
        calls.append(len(boxes))
        return assigner(anchors, boxes)

    detector.criterion.assigner = counted
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainingStep(detector, detector, optimizer, scaler, device=torch.device("cpu"))
    target = BoxList(torch.tensor([[9.0, 8.0, 52.0, 60.0]]), (64, 64), labels=torch.tensor([2]))
    batches = [
        Batch(ImageList(torch.randn(n, 3, 64, 64), [(64, 64)] * n), [target] * n, list(range(n)), [])
        for n in (1, 2, 3)
    ]
    step(batches)
    assert calls == [1, 2, 3]
    detector(batches[1].images, batches[1].targets)
    assert calls == [1, 2, 3, 2]
