"""The published models against their golden numbers."""

import numpy as np
import pytest
import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from tests import golden

STATE = golden.numbers("state_dict")
FORWARD = {
    "atss_R_50_FPN_1x": ("atss_R_50_FPN_1x", {}),
    "atss_R_50_FPN_1x_POINT": ("atss_R_50_FPN_1x", {"REGRESSION_TYPE": "POINT"}),
    "atss_X_101_32x8d_FPN_2x": ("atss_X_101_32x8d_FPN_2x", {}),
    "atss_dcnv2_R_50_FPN_1x": ("atss_dcnv2_R_50_FPN_1x", {}),
}
LOSSES = [
    *(f"R50_{p}_{r}" for p in ("ATSS", "SSC", "IoU", "TOPK") for r in ("BOX", "POINT")),
    "R50_ATSS_BOX_nopos",
    "dcnv2R50_ATSS_BOX",
]
PREDICTORS = ("cls_logits", "bbox_pred", "centerness")


@pytest.mark.parametrize("name", STATE)
def test_state_dict_is_the_published_one(name):
    with torch.device("meta"):
        model = build_detector(load_cfg(golden.ROOT / "configs" / "atss" / f"{name}.yaml"))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == STATE[name]["keys"]
    assert sum(p.numel() for p in model.parameters()) == STATE[name]["num_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == STATE[name]["num_trainable"]


@pytest.mark.parametrize("name", golden.numbers("requires_grad"))
def test_trained_parameters_are_the_published_ones(name):
    expected = golden.numbers("requires_grad")[name]
    model = build_detector(load_cfg(golden.ROOT / "configs" / "atss" / f"{name}.yaml"))
    parameters = dict(model.named_parameters())
    assert [n for n, p in parameters.items() if p.requires_grad] == expected["trainable"]
    assert [n for n, p in parameters.items() if not p.requires_grad] == expected["frozen"]
    assert [n for n, _ in model.named_buffers()] == expected["buffers"]


@pytest.mark.parametrize("name", FORWARD)
def test_forward_and_detections(name):
    expected = golden.arrays(f"forward_{name}")
    config, options = FORWARD[name]
    model = golden.detector(config, **options).eval()
    images = golden.images()
    with torch.inference_mode():
        features = model.backbone(images.tensors)
        outputs = model.rpn.head(features)
        detections = model.postprocess(outputs, images.image_sizes)
    for level in range(5):
        for key, value in (
            (f"P{level + 3}", features[level]),
            (f"cls{level}", outputs.cls_logits[level]),
            (f"reg{level}", outputs.encoded_boxes[level]),
            (f"ctr{level}", outputs.centerness[level]),
        ):
            assert list(value.shape) == expected[f"{key}/shape"].tolist()
            error = np.abs(value.flatten().numpy()[expected[f"{key}/idx"]] - expected[f"{key}/values"]).max()
            assert error < 1e-4 * expected[f"{key}/stats"][2], key
    for i, result in enumerate(detections):
        boxes, scores, labels = (
            torch.from_numpy(expected[f"det{i}/{k}"]) for k in ("boxes", "scores", "labels")
        )
        distances = (result.boxes[:, None] - boxes).abs().amax(dim=-1)
        distances[result.labels[:, None] != labels] = torch.inf
        nearest, partner = distances.min(dim=1)
        assert len(result) == len(boxes) == len(set(partner.tolist()))
        assert nearest.max() < 0.02
        assert (result.scores - scores[partner]).abs().max() < 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name):
    expected = golden.arrays(f"loss_{name}")
    backbone, positives, regression = name.split("_")[:3]
    config = "atss_dcnv2_R_50_FPN_1x" if backbone.startswith("dcn") else "atss_R_50_FPN_1x"
    model = golden.detector(config, POSITIVE_TYPE=positives, REGRESSION_TYPE=regression).train()
    images = golden.images()
    losses = model(images, golden.targets(expected, images.image_sizes))
    for key in ("loss_cls", "loss_reg", "loss_centerness"):
        assert losses[key].item() == pytest.approx(float(expected[key]), rel=1e-5, abs=1e-12)
    if "grad_names" not in expected.files:
        return
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert list(gradients) == expected["grad_names"].tolist()
    for key, norm in zip(gradients, expected["grad_norms"], strict=True):
        assert gradients[key].double().norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-9), key
    sampled = [key.split("/")[1] for key in expected.files if key.endswith("/norm")]
    assert len(sampled) == 15
    for key in sampled:
        gradient = gradients[key].flatten().numpy()
        rms = expected[f"grad/{key}/norm"] / np.sqrt(gradient.size)
        error = np.abs(gradient[expected[f"grad/{key}/idx"]] - expected[f"grad/{key}/values"]).max()
        assert error <= (1e-5 if key.split(".")[2] in PREDICTORS else 3e-2) * rms + 1e-12, key


@pytest.mark.parametrize("name", ["R50_ATSS_BOX", "R50_IoU_POINT"])
def test_numbers_of_positives_and_ignored(name):
    expected = golden.arrays(f"loss_{name}")
    _, positives, regression = name.split("_")
    model = golden.detector("atss_R_50_FPN_1x", POSITIVE_TYPE=positives, REGRESSION_TYPE=regression)
    images = golden.images()
    anchors = model.rpn.anchor_generator([(36, 44), (18, 22), (9, 11), (5, 6), (3, 3)])
    matched = model.criterion.match(anchors, golden.targets(expected, images.image_sizes))
    assert matched.is_positive.sum(dim=1).tolist() == expected["num_pos"].tolist()
    assert (matched.labels == -1).sum(dim=1).tolist() == expected["num_ignored"].tolist()
