"""Every configuration of the paper's tables trains, with few channels on an image small enough for a CPU.

In full width the published ones train in ``test_all_models.py``.
"""

import pytest
import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from tests.engine.helpers import SMALL, detect, train
from tests.golden import ROOT

FOLDER = ROOT / "configs" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))
# A backbone of few channels.
NARROW = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64"),
)
STEPS_TO_FCOS = (
    *("retinanet_1anchor", "retinanet_1anchor_gn", "retinanet_1anchor_gn_giou"),
    *(
        "retinanet_1anchor_gn_giou_inbox",
        "retinanet_1anchor_gn_giou_inbox_centerness",
        "iou_box",
        "ssc_point",
    ),
)
SCALES = ("TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.SCALES", "(48, 96)")
# One scale; several with a joint NMS; several with an NMS each.
INFERENCE = {"one": (), "joint": SCALES, "vote": (*SCALES, "TEST.BBOX_AUG.VOTE", "True")}


@pytest.fixture
def one_thread():
    """Small layers are slower with more threads, by seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_paper_config_trains(file, one_thread):
    cfg = load_cfg(file, NARROW)
    _, losses = train(cfg, num_steps=2)
    names = {"loss_cls", "loss_reg"} | ({"loss_centerness"} if cfg.MODEL.ATSS.USE_CENTERNESS else set())
    assert all(terms.keys() == names for terms in losses)
    assert all(terms["loss_reg"] > 0 for terms in losses)


@pytest.mark.parametrize("inference", INFERENCE)
@pytest.mark.parametrize("name", STEPS_TO_FCOS)
def test_each_step_to_fcos_detects(name, inference, one_thread):
    torch.manual_seed(0)
    cfg = load_cfg(FOLDER / f"{name}.yaml", [*NARROW, *SMALL, *INFERENCE[inference]])
    detections = detect(cfg, build_detector(cfg))
    assert detections.scores.max() <= 1
