import numpy as np
import pytest
import torch

from atss_core.export.parity import Comparison, Report, Tolerance, compare, detections_of, expect, shake
from atss_core.modeling.head import HeadOutputs
from atss_core.structures import BoxList

SIZE = (100, 100)
TOLERANCE = Tolerance(box=0.05, score=1e-3)


def boxes_at(*places, scores=None, labels=None):
    boxes = torch.tensor([[x, x, x + 20.0, x + 20.0] for x in places]).reshape(-1, 4)
    return BoxList(
        boxes,
        SIZE,
        torch.tensor(labels or [1] * len(places), dtype=torch.int64),
        torch.tensor(scores or [0.5] * len(places)),
    )


def compared(found, expected, *perturbed):
    return compare("a.jpg", SIZE, [found], [expected], [[s] for s in perturbed], TOLERANCE)


def test_differences_within_the_tolerance_are_equal_and_reported():
    expected = boxes_at(0.0, 40.0, scores=[0.9, 0.8])
    found = boxes_at(40.03, 0.01, scores=[0.8005, 0.9])  # in another order
    result = compared(found, expected, expected)
    assert result.is_equal
    assert (result.detections, result.stable, result.matched, result.extra) == (2, 2, 2, 0)
    assert result.box_difference == pytest.approx(0.03, abs=1e-5)
    assert result.score_difference == pytest.approx(0.0005, abs=1e-6)


@pytest.mark.parametrize(
    "found",
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
def test_what_is_steady_must_be_found_and_nothing_else(found):
    expected = boxes_at(0.0, 40.0)
    assert not compared(found, expected, expected, expected).is_equal


def test_what_rounding_decides_may_be_found_or_not():
    expected, perturbed = boxes_at(0.0, 40.0), boxes_at(0.0, 41.0)  # one of two suppresses the other
    for found in (expected, perturbed, boxes_at(0.0), boxes_at(0.0, 42.0)):
        result = compared(found, expected, expected, perturbed)
        assert result.stable == result.matched == 1
        assert result.is_equal
    assert not compared(boxes_at(0.0, 42.0, 70.0), expected, perturbed).is_equal
    assert not compared(boxes_at(40.0), expected, perturbed).is_equal


def test_a_report_without_proof_is_a_failure():
    def failure(**figures):
        names = ("detections", "stable", "matched", "extra")
        comparison = Comparison("a.jpg", SIZE, *(figures.get(n, 0) for n in names), 0.0, 0.0)
        return Report("a.onnx", "ONNX Runtime", TOLERANCE, [comparison]).failure

    assert failure(detections=9, stable=9, matched=9) == ""
    assert "nothing was detected" in failure()
    assert "only 4 of 9 detections" in failure(detections=9, stable=4, matched=4)
    assert "does not detect what the detector detects in a.jpg" in failure(detections=9, stable=9, matched=8)


def test_report_as_lines_and_as_json():
    comparison = Comparison("a.jpg", (144, 216), 9, 9, 9, 0, 1e-4, 2e-6)
    report = Report("a.onnx", "ONNX Runtime", TOLERANCE, [comparison], 20.0, 5.0, (144, 216), 2, 3)
    assert "a.jpg   144x216" in report.table()
    assert "detector 20.0 ms, ONNX Runtime 5.0 ms (medians of 3 in turns, 2 threads)" in report.table()
    assert report.to_dict()["is_equal"] is True
    assert report.to_dict()["comparisons"][0]["box_difference"] == 1e-4


def test_shaking_changes_everything_a_little():
    outputs = HeadOutputs([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 4, 3, 3)], [torch.zeros(1, 1, 3, 3)])
    perturbed = shake(outputs, torch.Generator().manual_seed(0))
    for levels in (perturbed.cls_logits, perturbed.encoded_boxes, perturbed.centerness):
        assert 0 < levels[0].abs().max() <= 1e-4
        assert levels[0].min() < 0 < levels[0].max()
    assert shake(HeadOutputs([], [], None), torch.Generator()).centerness is None


def test_candidates_go_through_nms_and_detections_do_not(tiny_model):
    boxes = np.array([[[0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 60, 60], [0, 0, 0, 0]]], dtype=np.float32)
    scores = np.array([[0.5, 0.9, 0.7, -1.0]], dtype=np.float32)
    labels = np.array([[1, 1, 1, 1]])
    (found,) = detections_of([boxes, scores, labels], tiny_model.detector, [SIZE])
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    (found,) = detections_of([boxes, scores, labels, np.array([2])], tiny_model.detector, [SIZE])
    assert found.scores.tolist() == pytest.approx([0.5, 0.9])


def test_random_weights_make_steady_detections(tiny_model):
    prover = tiny_model.prover()
    images, _ = prover.read(prover.batches[0])
    expected, perturbed = expect(tiny_model.detector, images)
    assert len(perturbed) == 8
    assert compare("a.jpg", SIZE, expected, expected, perturbed, TOLERANCE).stable >= 80
