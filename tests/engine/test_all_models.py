"""Every published configuration trains and tests, on images small enough for a CPU."""

import math

import pytest
import torch

from atss_core.config import load_cfg
from atss_core.data import Batch
from atss_core.engine import TrainingStep
from atss_core.engine.build import build_inference
from atss_core.modeling import build_detector
from atss_core.solver import build_optimizer
from atss_core.structures import BoxList, ImageList
from tests.golden import ROOT

CPU = torch.device("cpu")
CONFIGS = sorted((ROOT / "configs" / "atss").glob("*.yaml"))


# Images small enough for a CPU.
SMALL = ("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "MODEL.ATSS.INFERENCE_TH", "0.0")


def train(cfg, num_steps):
    """Train a fresh detector on one image; returns it and the loss terms of each step."""
    torch.manual_seed(0)
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    step = TrainingStep(detector, detector, optimizer, torch.amp.GradScaler("cpu", enabled=False), device=CPU)
    size = (64, 96)
    target = BoxList(torch.tensor([[10.0, 12.0, 60.0, 50.0]]), size, labels=torch.tensor([7]))
    head = detector.rpn.head
    before = [layer.weight.clone() for layer in (head.cls_logits, head.bbox_pred)]
    batch = Batch(ImageList(torch.randn(1, 3, *size), [size]), [target], [1], [])
    losses = [step([batch]) for _ in range(num_steps)]
    assert all(math.isfinite(loss) for terms in losses for loss in terms.values())
    for layer, weight in zip((head.cls_logits, head.bbox_pred), before, strict=True):
        assert not torch.equal(layer.weight, weight)
        assert layer.weight.isfinite().all()
    return detector, losses


def detect(cfg, detector):
    """Test a detector on one image; returns what it found."""
    inference = build_inference(cfg, detector.eval(), CPU)
    is_multi_scale = cfg.TEST.BBOX_AUG.ENABLED  # which takes images as they are, and prepares them itself
    image = (
        torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) if is_multi_scale else torch.randn(3, 64, 96)
    )
    images = ImageList.from_tensors([image])
    with torch.inference_mode():
        (found,) = inference.detect(inference.predict(images), images.image_sizes)
    assert len(found) > 0
    assert found.scores.isfinite().all()
    return found


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_published_model_trains_and_tests(file):
    scales = ["TEST.BBOX_AUG.SCALES", "(48, 96)", "TEST.BBOX_AUG.SCALE_RANGES", "((0, 10000), (0, 10000))"]
    cfg = load_cfg(file, [*SMALL, *scales, "TEST.BBOX_AUG.ENABLED", "True"])
    detector, (losses,) = train(cfg, num_steps=1)
    assert losses.keys() == {"loss_cls", "loss_reg", "loss_centerness"}
    detect(cfg, detector)
