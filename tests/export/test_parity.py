import numpy as np
import pytest
import torch

from atss_core.export.parity import (
    Comparison,
    Report,
    Tolerance,
    compare,
    detect_perturbed,
    perturb,
    read_detections,
)
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList
from tests.export.conftest import IMAGES

SIZE = (100, 100)
TOLERANCE = Tolerance(box=0.05, score=1e-3)


def boxes_at(*corners, scores=None, labels=None):
    boxes = torch.tensor([[x, x, x + 20.0, x + 20.0] for x in corners]).reshape(-1, 4)
    return BoxList(
        boxes,
        SIZE,
        torch.tensor(labels or [1] * len(corners), dtype=torch.int64),
        torch.tensor(scores or [0.5] * len(corners)),
    )


def compared(detections, expected, *perturbed):
    return compare("a.jpg", SIZE, [detections], [expected], [[s] for s in perturbed], TOLERANCE)


def test_differences_within_the_tolerance_are_equal_and_reported():
    expected = boxes_at(0.0, 40.0, scores=[0.9, 0.8])
    detections = boxes_at(40.03, 0.01, scores=[0.8005, 0.9])  # in another order
    result = compared(detections, expected, expected)
    assert result.is_equal
    assert (result.detections, result.stable, result.matched, result.extra) == (2, 2, 2, 0)
    assert result.box_difference == pytest.approx(0.03, abs=1e-5)
    assert result.score_difference == pytest.approx(0.0005, abs=1e-6)


@pytest.mark.parametrize(
    "detections",
    [
        boxes_at(0.0),
        boxes_at(0.0, 40.2),
        boxes_at(0.0, 40.0, scores=[0.5, 0.502]),
        boxes_at(0.0, 40.0, labels=[1, 2]),
        boxes_at(0.0, 40.0, 70.0),
        boxes_at(),
    ],
    ids=["missing", "box", "score", "label", "extra", "nothing"],
)
def test_stable_detections_must_match_without_extra_ones(detections):
    expected = boxes_at(0.0, 40.0)
    assert not compared(detections, expected, expected, expected).is_equal


def test_unstable_detections_may_differ():
    expected, perturbed = boxes_at(0.0, 40.0), boxes_at(0.0, 41.0)  # NMS keeps one of two boxes
    for detections in (expected, perturbed, boxes_at(0.0), boxes_at(0.0, 42.0)):
        result = compared(detections, expected, expected, perturbed)
        assert result.stable == result.matched == 1
        assert result.is_equal
    assert not compared(boxes_at(0.0, 42.0, 70.0), expected, perturbed).is_equal
    assert not compared(boxes_at(40.0), expected, perturbed).is_equal


def test_too_few_stable_detections_fail_the_check():
    def failure(**counts):
        names = ("detections", "stable", "matched", "extra")
        comparison = Comparison("a.jpg", SIZE, *(counts.get(n, 0) for n in names), 0.0, 0.0)
        return Report("a.onnx", "ONNX Runtime", TOLERANCE, [comparison]).failure

    assert failure(detections=9, stable=9, matched=9) == ""
    assert "nothing was detected" in failure()
    assert "only 4 of 9 detections" in failure(detections=9, stable=4, matched=4)
    assert "does not detect what the detector detects in a.jpg" in failure(detections=9, stable=9, matched=8)


def test_report_as_table_and_as_json():
    comparison = Comparison("a.jpg", (144, 216), 9, 9, 9, 0, 1e-4, 2e-6)
    report = Report("a.onnx", "ONNX Runtime", TOLERANCE, [comparison], 20.0, 5.0, (144, 216), 2, 3)
    assert "a.jpg   144x216" in report.table()
    assert "detector 20.0 ms, ONNX Runtime 5.0 ms (medians of 3 in turns, 2 threads)" in report.table()
    assert report.to_dict()["is_equal"] is True
    assert report.to_dict()["comparisons"][0]["box_difference"] == 1e-4


def test_perturbation_is_small_and_changes_all_outputs():
    outputs = HeadOutputs([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 4, 3, 3)], [torch.zeros(1, 1, 3, 3)])
    perturbed = perturb(outputs, torch.Generator().manual_seed(0))
    for levels in (perturbed.cls_logits, perturbed.encoded_boxes, perturbed.centerness):
        assert 0 < levels[0].abs().max() <= 1e-4
        assert levels[0].min() < 0 < levels[0].max()
    assert perturb(HeadOutputs([], [], None), torch.Generator()).centerness is None


def test_only_candidates_go_through_nms(tiny_model):
    boxes = np.array([[[0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 60, 60], [0, 0, 0, 0]]], dtype=np.float32)
    scores = np.array([[0.5, 0.9, 0.7, -1.0]], dtype=np.float32)
    labels = np.array([[1, 1, 1, 1]])
    (detections,) = read_detections([boxes, scores, labels], tiny_model.detector, [SIZE])
    assert detections.scores.tolist() == pytest.approx([0.9, 0.7])
    (detections,) = read_detections([boxes, scores, labels, np.array([2])], tiny_model.detector, [SIZE])
    assert detections.scores.tolist() == pytest.approx([0.5, 0.9])


def test_random_weights_give_stable_detections(tiny_model):
    images, _ = tiny_model.parity_check().read_batch(IMAGES[:1])
    expected, perturbed = detect_perturbed(tiny_model.detector, images)
    assert len(perturbed) == 8
    assert compare("a.jpg", SIZE, expected, expected, perturbed, TOLERANCE).stable >= 80
