"""Small detectors with many detections, and exported files of them."""

import pytest
import torch

from atss_core.config import load_cfg
from atss_core.export import TARGETS, build_description, build_graph, build_parity_check
from atss_core.export.targets import convert_to_openvino
from atss_core.modeling import build_detector
from tests import golden
from tests.conftest import QUICK, TINY

SIZES = ["INPUT.MIN_SIZE_TEST", "136", "INPUT.MAX_SIZE_TEST", "200"]
IMAGES = [golden.ROOT / "demo" / "images" / name for name in ("shapes_14.jpg", "shapes_19.jpg")]


class Model:
    """A config and its detector with random weights."""

    def __init__(self, file, opts):
        self.cfg = load_cfg(file, [*opts, *SIZES])
        self.detector = build_detector(self.cfg).eval()
        points = self.cfg.MODEL.ATSS.REGRESSION_TYPE == "POINT"
        state = self.detector.state_dict()
        for key, value in state.items():
            if value.is_floating_point() and ".cell_anchors." not in key:
                state[key] = golden.weight(key, value.shape, points)
        self.detector.load_state_dict(state)
        with torch.no_grad():
            self.detector.rpn.head.cls_logits.bias += 1.5

    def describe(self, nms):
        names = [f"thing{i}" for i in range(1, self.detector.rpn.head.num_classes + 1)]
        return build_description(self.cfg, names, nms)

    def graph(self):
        return build_graph(self.cfg, self.detector)

    def write(self, name, folder, nms="inside"):
        path = folder / f"{nms}{TARGETS[name].suffix}"
        TARGETS[name].write(self.graph(), nms == "inside", path, self.describe(nms))
        return path

    def parity_check(self):
        return build_parity_check(self.cfg, self.detector, IMAGES, repeats=1)

    def verify(self, path):
        return self.parity_check()(path)


class Files:
    """Files of a model in all formats, each written on first use."""

    def __init__(self, model, folder):
        self.model, self.folder, self.files = model, folder, {}

    def __call__(self, name, nms="inside"):
        for package in TARGETS[name].packages:
            pytest.importorskip(package, reason="pip install -e '.[export]'")
        if (name, nms) not in self.files:
            self.files[name, nms] = self._write(name, nms)
        return self.files[name, nms]

    def _write(self, name, nms):
        if name != "openvino":
            return self.model.write(name, self.folder, nms)
        path = self.folder / f"{nms}.xml"
        convert_to_openvino(self("onnx", nms), path, self.model.describe(nms))
        return path


@pytest.fixture(scope="session")
def tiny_model():
    return Model(QUICK, TINY)


@pytest.fixture(scope="session")
def tiny_files(tiny_model, tmp_path_factory):
    return Files(tiny_model, tmp_path_factory.mktemp("exported"))
