"""What detections can be turned into, and that they stay detections."""

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
def found():
    boxes = torch.tensor([[10.0, 20, 29, 59], [0, 0, 0, 0], [5.5, 6.5, 50, 40]])
    listed = BoxList(boxes, (60, 80), torch.tensor([2, 1, 2]), torch.tensor([0.9, 0.6, 0.25]))
    return Detections(listed, NAMES)


def test_text_counts_the_classes(found):
    assert str(found) == "3 objects: 2 square, 1 circle"
    assert repr(found) == "Detections(80x60, 3 objects: 2 square, 1 circle)"
    assert str(found[:1]) == "1 object: 1 square"
    assert str(found.above(1.0)) == "0 objects"


def test_what_is_made_of_detections_has_names_as_well(found):
    mask = found.labels == 2
    made = [found.to("cpu"), found.resize((120, 160)), found.clip(), found.flip_horizontal(), found[mask]]
    for other in [*made, found.drop_empty(), found[1], found[torch.tensor([0])]]:
        assert type(other) is Detections
        assert other.class_names == NAMES
    assert found.resize((120, 160)).image_size == (120, 160)
    assert found.image_size == (60, 80), "the original stays"
    assert type(BoxList(found.boxes, (60, 80)).clip()) is BoxList


def test_detections_can_be_counted_off(found):
    assert [one.names for one in found] == [["square"], ["circle"], ["square"]]
    assert [name for name, _, _ in found.rows()] == found.names
    assert next(found.rows()) == ("square", pytest.approx(0.9), (10.0, 20.0, 29.0, 59.0))
    assert found.above(0.6).scores.tolist() == found.scores[:2].tolist()


def test_coco_results_are_those_of_the_evaluation(found):
    images = [{"id": 7, "height": 60, "width": 80, "file_name": "a.jpg"}]
    evaluator = CocoEvaluator({"images": images}, [3, 11], NAMES, [7])
    evaluator.process(7, found)
    results = found.to_coco(7, category_ids=[3, 11])
    assert results == evaluator.results
    assert results[0]["bbox"] == [10, 20, 20, 40]
    assert [result["category_id"] for result in found.to_coco()] == [2, 1, 2]
    assert json.loads(json.dumps(results)) == results
    with pytest.raises(ValueError, match="expected 2 category ids, one a class, got 1"):
        found.to_coco(7, [1])


def test_drawing_takes_any_size_and_form_of_the_image(found, tmp_path):
    image = Image.new("RGB", (80, 60), "gray")
    drawn = found.draw(image)
    assert drawn.size == (80, 60)
    assert drawn != image
    assert found.draw(np.asarray(image)) == drawn
    assert found.draw(image, scale=2).size == (160, 120)
    assert found.draw(image, threshold=0.95) == image
    image.save(tmp_path / "a.png")
    assert Detections(found, NAMES, tmp_path / "a.png").draw() == drawn
    with pytest.raises(ValueError, match=r"not found in a file: give the image"):
        found.draw()


def test_supervision_gets_borders_and_names(found):
    supervision = pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert detections.xyxy[0].tolist() == [10, 20, 30, 60]
    assert detections.class_id.tolist() == [1, 0, 1]
    assert detections.data["class_name"].tolist() == found.names
    assert detections.area.tolist()[:2] == [20 * 40, 1]
    nothing = found.above(1.0).to_supervision()
    assert isinstance(nothing, supervision.Detections)
    assert len(nothing) == 0


def test_missing_supervision_is_explained(found, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs supervision, which is not installed: pip install"):
        found.to_supervision()


def test_detections_need_scores(found):
    with pytest.raises(ValueError, match="expected detections with labels and scores"):
        Detections(BoxList(found.boxes, (60, 80), found.labels), NAMES)


def test_api_imports_no_optional_package():
    code = "import sys, atss_core.engine; assert not {'cv2', 'supervision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
