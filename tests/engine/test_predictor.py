"""Pictures of every mode and weights of every source through the Python API."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from atss_core.config import load_cfg
from atss_core.data import to_rgb
from atss_core.engine import Predictor
from atss_core.modeling import build_detector
from tests.conftest import QUICK, TINY
from tests.golden import ROOT

OPTS = [*TINY, "MODEL.ATSS.INFERENCE_TH", "0.0"]
MULTI_SCALE = [
    "TEST.BBOX_AUG.ENABLED",
    "True",
    "TEST.BBOX_AUG.H_FLIP",
    "True",
    "TEST.BBOX_AUG.SCALES",
    "(48,)",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save({"model": build_detector(load_cfg(QUICK, TINY)).state_dict()}, file)
    return file


@pytest.fixture(scope="module", params=[[], MULTI_SCALE], ids=["one size", "many sizes"])
def predictor(request, weights):
    return Predictor.from_config(QUICK, weights, [*OPTS, *request.param])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_pictures_of_every_mode(predictor, mode):
    picture = Image.linear_gradient("L").resize((80, 60))
    picture = (
        picture.convert(mode)
        if mode != "I;16"
        else picture.convert("I").point(lambda x: x * 256).convert(mode)
    )
    found, expected = predictor(picture), predictor(to_rgb(picture))
    assert len(found) > 0
    assert found.image_size == (60, 80)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


def test_names_of_bodies_are_explained():
    with pytest.raises(ValueError, match=r"torchvision://resnet18 names an ImageNet body, not a detector"):
        Predictor.from_config(QUICK, "torchvision://resnet18", TINY)


def test_weights_in_the_home_folder(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert Predictor.from_config(QUICK, f"~/{weights.name}", TINY).class_names


def test_data_needs_no_classifiers():
    code = "import sys, atss_core.data; assert 'torchvision.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
