"""Every published configuration trains and tests, on pictures small enough for a CPU."""

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


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_published_model_trains_and_tests(file):
    torch.manual_seed(0)
    sizes = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "TEST.BBOX_AUG.SCALES", "(48, 96)"]
    ranges = ["TEST.BBOX_AUG.SCALE_RANGES", "((0, 10000), (0, 10000))"]
    cfg = load_cfg(file, [*sizes, *ranges, "TEST.BBOX_AUG.ENABLED", "True", "MODEL.ATSS.INFERENCE_TH", "0.0"])
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    step = TrainingStep(detector, detector, optimizer, torch.amp.GradScaler("cpu", enabled=False), device=CPU)
    size = (64, 96)
    target = BoxList(torch.tensor([[10.0, 12.0, 60.0, 50.0]]), size, labels=torch.tensor([7]))
    before = detector.rpn.head.cls_logits.weight.clone()
    losses = step([Batch(ImageList(torch.randn(1, 3, *size), [size]), [target], [1], [])])
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses.keys() == {"loss_cls", "loss_reg", "loss_centerness"}
    assert not torch.equal(detector.rpn.head.cls_logits.weight, before)

    inference = build_inference(cfg, detector.eval(), CPU)
    pictures = ImageList.from_tensors([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    with torch.inference_mode():
        (found,) = inference.detect(inference.predict(pictures), pictures.image_sizes)
    assert len(found) > 0
    assert found.scores.isfinite().all()
