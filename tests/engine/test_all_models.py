"""Every published configuration trains and detects, on images small enough for a CPU."""

import pytest

from atss_core.config import load_cfg
from tests.engine.helpers import SMALL, detect, train
from tests.golden import ROOT

CONFIGS = sorted((ROOT / "configs" / "atss").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_published_model_trains_and_detects(file):
    scales = ["TEST.BBOX_AUG.SCALES", "(48, 96)", "TEST.BBOX_AUG.SCALE_RANGES", "((0, 10000), (0, 10000))"]
    cfg = load_cfg(file, [*SMALL, *scales, "TEST.BBOX_AUG.ENABLED", "True"])
    detector, (losses,) = train(cfg, num_steps=1)
    assert losses.keys() == {"loss_cls", "loss_reg", "loss_centerness"}
    detect(cfg, detector)
