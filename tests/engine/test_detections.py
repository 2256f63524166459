"""Conversions of detections, and that operations on them return detections."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.engine.detections import Detections
from atss_core.evaluation import CocoEvaluator
from atss_core.structures import BoxList
from atss_core.utils import extras
from tests.golden import ROOT

NAMES = ["circle", "square"]


@pytest.fixture
def detections():
    boxes = torch.tensor([[10.0, 20, 29, 59], [0, 0, 0, 0], [5.5, 6.5, 50, 40]])
    listed = BoxList(boxes, (60, 80), torch.tensor([2, 1, 2]), torch.tensor([0.9, 0.6, 0.25]))
    return Detections(listed, NAMES)


def test_text_counts_the_classes(detections):
    assert str(detections) == "3 objects: 2 square, 1 circle"
    assert repr(detections) == "Detections(80x60, 3 objects: 2 square, 1 circle)"
    assert str(detections[:1]) == "1 object: 1 square"
    assert str(detections.above(1.0)) == "0 objects"


def test_results_of_operations_keep_the_class_names(detections):
    mask = detections.labels == 2
    made = [
        detections.to("cpu"),
        detections.resize((120, 160)),
        detections.clip(),
        detections.flip_horizontal(),
        detections[mask],
    ]
    for other in [*made, detections.drop_empty(), detections[1], detections[torch.tensor([0])]]:
        assert type(other) is Detections
        assert other.class_names == NAMES
    assert detections.resize((120, 160)).image_size == (120, 160)
    assert detections.image_size == (60, 80), "the original stays"
    assert type(BoxList(detections.boxes, (60, 80)).clip()) is BoxList


def test_detections_can_be_iterated(detections):
    assert [one.names for one in detections] == [["square"], ["circle"], ["square"]]
    assert [name for name, _, _ in detections.rows()] == detections.names
    assert next(detections.rows()) == ("square", pytest.approx(0.9), (10.0, 20.0, 29.0, 59.0))
    assert detections.above(0.6).scores.tolist() == detections.scores[:2].tolist()


def test_coco_results_are_those_of_the_evaluation(detections):
    images = [{"id": 7, "height": 60, "width": 80, "file_name": "a.jpg"}]
    evaluator = CocoEvaluator({"images": images}, [3, 11], NAMES, [7])
    evaluator.process(7, detections)
    results = detections.to_coco(7, category_ids=[3, 11])
    assert results == evaluator.results
    assert results[0]["bbox"] == [10, 20, 20, 40]
    assert [result["category_id"] for result in detections.to_coco()] == [2, 1, 2]
    assert json.loads(json.dumps(results)) == results
    with pytest.raises(ValueError, match="expected 2 category ids, one per class, got 1"):
        detections.to_coco(7, [1])


def test_drawing_takes_any_size_and_form_of_the_image(detections, tmp_path):
    image = Image.new("RGB", (80, 60), "gray")
    drawn = detections.draw(image)
    assert drawn.size == (80, 60)
    assert drawn != image
    assert detections.draw(np.asarray(image)) == drawn
    assert detections.draw(image, scale=2).size == (160, 120)
    assert detections.draw(image, threshold=0.95) == image
    image.save(tmp_path / "a.png")
    assert Detections(detections, NAMES, tmp_path / "a.png").draw() == drawn
    with pytest.raises(ValueError, match=r"got None for detections without a file\. Call draw\(image\)"):
        detections.draw()


def test_supervision_gets_borders_and_names(detections):
    supervision = pytest.importorskip("supervision")
    converted = detections.to_supervision()
    assert converted.xyxy[0].tolist() == [10, 20, 30, 60]
    assert converted.class_id.tolist() == [1, 0, 1]
    assert converted.data["class_name"].tolist() == detections.names
    assert converted.area.tolist()[:2] == [20 * 40, 1]
    nothing = detections.above(1.0).to_supervision()
    assert isinstance(nothing, supervision.Detections)
    assert len(nothing) == 0


def test_missing_supervision_is_explained(detections, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs supervision, which is not installed: pip install"):
        detections.to_supervision()


def test_detections_need_scores(detections):
    with pytest.raises(ValueError, match="expected detections with labels and scores"):
        Detections(BoxList(detections.boxes, (60, 80), detections.labels), NAMES)


def test_api_imports_no_optional_package():
    code = "import sys, atss_core.engine; assert not {'cv2', 'supervision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
