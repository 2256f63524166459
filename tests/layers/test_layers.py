import numpy as np
import pytest
import torch

from atss_core.layers import (
    DeformConv2d,
    FrozenBatchNorm2d,
    Scale,
    batched_nms,
    group_norm,
    nms,
    sigmoid_focal_loss,
)
from atss_core.structures import boxes as box_ops
from tests import golden


def slow_nms(boxes, scores, labels, threshold):
    """Keep a box unless a kept, better one of its class overlaps it by more than the threshold."""
    keep = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in keep if labels[j] == labels[i]]
        if not any(box_ops.iou(boxes[i], boxes[j]) > threshold for j in rivals):
            keep.append(i)
    return keep


@pytest.mark.parametrize("threshold", [0.5, 0.6])
@pytest.mark.parametrize("case", ["a", "b"])
def test_nms_golden(case, threshold):
    expected = golden.arrays("nms")
    boxes, scores, labels = (torch.from_numpy(expected[f"{case}/{k}"]) for k in ("boxes", "scores", "labels"))
    kept = nms(boxes, scores, threshold).tolist()
    assert sorted(kept) == sorted(expected[f"{case}/nms/{threshold}"].tolist())
    kept = batched_nms(boxes, scores, labels.long(), threshold).tolist()
    assert sorted(kept) == sorted(expected[f"{case}/ml_nms/{threshold}"].tolist())


def test_nms_keeps_a_box_exactly_at_the_threshold():
    expected = golden.arrays("nms")
    boxes, scores = (torch.from_numpy(expected[f"edge/{k}"]) for k in ("boxes", "scores"))
    assert sorted(nms(boxes, scores, 0.6).tolist()) == expected["edge/keep_gpu_strict"].tolist()


def test_batched_nms_equals_loop_also_for_large_labels_and_negative_boxes():
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=random) * 60 - 30
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=random) * 40], dim=1)
    scores = torch.rand(200, generator=random)
    labels = torch.randint(0, 3, (200,), generator=random) * 700
    assert batched_nms(boxes, scores, labels, 0.5).tolist() == slow_nms(boxes, scores, labels, 0.5)


def test_nms_of_nothing():
    nothing = torch.zeros(0)
    assert batched_nms(torch.zeros(0, 4), nothing, nothing.long(), 0.5).tolist() == []
    assert nms(torch.zeros(0, 4), nothing, 0.5).tolist() == []


def test_focal_loss_golden():
    expected = golden.arrays("focal")
    logits = torch.from_numpy(expected["logits"]).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.from_numpy(expected["labels"]).long())
    loss.backward()
    assert loss.item() == pytest.approx(float(expected["loss_cuda_formula"]), rel=1e-5)
    assert np.allclose(logits.grad.numpy(), expected["grad_cpu_path"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "label"), [("pos", 1), ("neg", 0), ("ign", -1)])
def test_focal_loss_of_extreme_logits(case, label):
    expected = golden.arrays("focal")
    for value, loss, gradient in zip(
        expected["extreme/logits"],
        expected[f"extreme/{case}/cuda"],
        expected[f"extreme/{case}/cuda_grad"],
        strict=True,
    ):
        # Beyond that the published kernel clamps the logarithm at the smallest float; ours stays exact.
        if abs(value) > 80:
            continue
        logit = torch.tensor([[float(value)]], requires_grad=True)
        found = sigmoid_focal_loss(logit, torch.tensor([label]))
        found.backward()
        assert found.item() == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
        assert logit.grad.item() == pytest.approx(float(gradient), rel=1e-4, abs=1e-6)


def test_focal_loss_of_nothing_is_zero():
    assert sigmoid_focal_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize("case", [0, 1])
def test_deform_conv_golden(case):
    expected = golden.arrays("deform_conv")
    value = {
        k: torch.from_numpy(expected[f"{case}/{k}"])
        for k in ("x", "offset", "mask", "weight", "bias", "grad_out")
    }
    stride, _, groups = expected[f"{case}/stride_pad_groups"].tolist()
    out_channels, in_channels = value["weight"].shape[0], value["x"].shape[1]
    layer = DeformConv2d(in_channels, out_channels, stride=stride, groups=groups, bias=True)
    layer.conv.weight.data, layer.conv.bias.data = value["weight"], value["bias"]
    # Feed offsets and mask logits past the layer's own prediction.
    mask = value["mask"]
    predicted = torch.cat([value["offset"], torch.logit(mask.double()).float()], dim=1).requires_grad_()
    layer.offset = torch.nn.Identity()
    layer.offset.forward = lambda x: predicted
    x = value["x"].clone().requires_grad_()
    out = layer(x)
    out.backward(value["grad_out"])
    assert np.allclose(out.detach(), expected[f"{case}/out"], atol=1e-4)
    assert np.allclose(x.grad, expected[f"{case}/grad_x"], atol=1e-4)
    grad_offset, grad_logits = predicted.grad.split([mask.shape[1] * 2, mask.shape[1]], dim=1)
    assert np.allclose(grad_offset, expected[f"{case}/grad_offset"], atol=1e-3)
    assert np.allclose(grad_logits / (mask * (1 - mask)), expected[f"{case}/grad_mask"], atol=1e-3)
    assert np.allclose(layer.conv.weight.grad, expected[f"{case}/grad_weight"], atol=1e-3)


@pytest.mark.parametrize("modulated", [True, False])
def test_deform_conv_starts_as_a_convolution(modulated):
    layer = DeformConv2d(8, 4, modulated=modulated, offset_groups=2, stride=2)
    assert layer.offset.out_channels == (54 if modulated else 36)
    x = torch.randn(2, 8, 9, 7)
    plain = torch.nn.functional.conv2d(x, layer.conv.weight, stride=2, padding=1)
    assert torch.allclose(layer(x), plain * (0.5 if modulated else 1), atol=1e-5)


def test_deform_conv_splits_offsets_of_all_groups_before_masks():
    layer = DeformConv2d(4, 4, offset_groups=2)
    layer.offset.bias.data[36 + 9 :] = -100.0  # the masks of the second group
    x = torch.randn(1, 4, 5, 5)
    x_first = x.clone()
    x_first[:, 2:] = 0
    assert torch.allclose(layer(x), layer(x_first), atol=1e-6)


def test_frozen_batch_norm_adds_no_epsilon():
    layer = FrozenBatchNorm2d(2)
    layer.weight[:] = torch.tensor([1.0, 2.0])
    layer.running_var[:] = torch.tensor([1e-10, 4.0])
    layer.running_mean[:] = 3.0
    layer.bias[:] = 1.0
    out = layer(torch.full((1, 2, 1, 1), 5.0)).flatten()
    assert out.tolist() == pytest.approx([2e5 + 1, 3.0], rel=1e-5)
    assert not list(layer.parameters())


def test_group_norm_by_groups_or_channels():
    assert group_norm(64).num_groups == 32
    assert group_norm(64, num_groups=-1, channels_per_group=16).num_groups == 4
    with pytest.raises(ValueError, match="48 channels cannot be split into 32"):
        group_norm(48)
    with pytest.raises(ValueError, match=r"either .*NUM_GROUPS or DIM_PER_GP"):
        group_norm(64, channels_per_group=4)


def test_scale_has_the_published_key():
    layer = Scale(3.0)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {"scale": torch.Size([1])}
    assert layer(torch.tensor([2.0])).item() == 6
