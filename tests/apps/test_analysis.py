import numpy as np
import pytest

from atss_core.apps.report.analysis import (
    CORRECT,
    IGNORED,
    UNMATCHED,
    WRONG_CLASS,
    analyze,
    best_threshold,
    score_curves,
)
from atss_core.evaluation.backends import measure
from tests.evaluation.made_up import KINDS, make_up

BOX = [0, 0, 100, 100]
FAR = [300, 300, 50, 50]
CLASSES = ["cat", "dog"]
NO_ERRORS = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), 0)


def annotation(category_id, box, image_id=1, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": iscrowd}


def detection(category_id, box, score, image_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def analysis_of(ground_truth, detections, images=(1,)):
    return analyze(ground_truth, detections, images, [1, 2], CLASSES)


def analysis_of_made_up(kind, seed, **options):
    images, classes, annotations, detections = make_up(kind, seed, **options)
    analysis = analyze(annotations, detections, images, classes, [str(i) for i in classes])
    return analysis, (images, classes, annotations, detections)


def average_precision(is_correct, num_gt):
    """The mean of the interpolated precision at the recalls 0, 0.01, ..., 1, as COCO defines it."""
    num_correct = np.cumsum(is_correct)
    precision = num_correct / np.arange(1, len(is_correct) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    rows = np.searchsorted(num_correct / num_gt, np.linspace(0, 1, 101), side="left")
    return float(np.append(falling, 0.0)[np.minimum(rows, len(falling))].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_matches_give_the_ap_of_pycocotools(kind):
    for seed in range(4):
        analysis, case = analysis_of_made_up(kind, seed)
        measured = measure("pycocotools", *case)
        for k, num_gt in enumerate(analysis.num_gt.tolist()):
            rows = (analysis.detections.classes == k) & (analysis.outcome != IGNORED)
            order = np.argsort(-analysis.detections.scores[rows], kind="stable")
            is_correct = (analysis.outcome[rows] == CORRECT)[order]
            expected = measured.precision[0, :, k, 0]
            if num_gt:
                assert average_precision(is_correct, num_gt) == pytest.approx(expected.mean(), abs=1e-12)
            else:
                assert (expected == -1).all()


@pytest.mark.parametrize("kind", ["plain", "equal scores", "only crowds", "no detections", "one object"])
def test_counts_of_matrix_threshold_and_outcomes_agree(kind):
    analysis, _ = analysis_of_made_up(kind, 0)
    matrix, threshold = analysis.confusion(), analysis.threshold
    correct, num_gt = np.trace(matrix[:-1, :-1]), analysis.num_gt.sum()
    assert matrix[:-1].sum(axis=1).tolist() == analysis.num_gt.tolist()
    shown = analysis.is_shown & (analysis.outcome != IGNORED)
    assert matrix[:, :-1].sum() == np.count_nonzero(shown)
    assert correct == np.count_nonzero(shown & (analysis.outcome == CORRECT))
    assert correct == np.count_nonzero(analysis.gt_outcome == CORRECT)
    assert threshold.recall == pytest.approx(correct / num_gt if num_gt else 0)
    assert threshold.precision == pytest.approx(correct / shown.sum() if correct else 0)


def test_each_outcome():
    analysis = analysis_of(
        [
            annotation(1, BOX),
            annotation(2, FAR),
            annotation(1, [500, 0, 50, 50]),
            annotation(1, [0, 500, 80, 80], iscrowd=1),
        ],
        [
            detection(1, BOX, 0.9),
            detection(1, [0, 0, 100, 90], 0.8),
            detection(1, FAR, 0.7),
            detection(1, [0, 500, 40, 40], 0.95),
            detection(1, [500, 0, 50, 50], 0.85),
        ],
    )
    assert analysis.threshold.score == 0.85
    by_score = dict(zip(analysis.detections.scores.tolist(), analysis.outcome.tolist(), strict=True))
    assert by_score == {0.95: IGNORED, 0.9: CORRECT, 0.85: CORRECT, 0.8: UNMATCHED, 0.7: UNMATCHED}
    assert analysis.gt_outcome.tolist() == [CORRECT, UNMATCHED, CORRECT, IGNORED]
    assert analysis.confusion().tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_other_classes_match_what_the_own_class_leaves():
    objects = [annotation(1, BOX), annotation(2, FAR)]
    analysis = analysis_of(
        objects,
        [detection(2, BOX, 0.9), detection(1, BOX, 0.8), detection(1, FAR, 0.7), detection(2, FAR, 0.2)],
    )
    # The cat is matched to the second detection although the first has a higher score.
    assert analysis.gt_outcome.tolist() == [CORRECT, CORRECT]
    assert analysis.confusion().tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    analysis = analysis_of(objects, [detection(1, BOX, 0.9), detection(1, FAR, 0.9)])
    assert analysis.outcome.tolist() == [CORRECT, WRONG_CLASS]
    assert analysis.gt_outcome.tolist() == [CORRECT, WRONG_CLASS]
    assert analysis.confusion().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_best_threshold():
    scores, is_correct = np.array([0.3, 0.9, 0.5, 0.5, 0.7]), np.array([False, True, True, False, True])
    best = best_threshold(scores, is_correct, num_gt=4)
    # 0.9: 1 of 1, F1 0.4; 0.7: 2 of 2, F1 2/3; 0.5: 3 of 4, F1 0.75.
    assert (best.score, best.precision, best.recall, best.f1) == (0.5, 0.75, 0.75, 0.75)
    levels, precision, recall, f1 = score_curves(scores, is_correct, 4, points=10)
    assert f1.max() == best.f1
    assert levels[[0, -1]].tolist() == [0, 0.9]
    assert (precision[0], recall[0]) == (0.6, 0.75)
    assert (precision[-1], recall[-1]) == (1, 0.25)
    assert best_threshold(scores[:0], is_correct[:0], 4).f1 == 0
    assert best_threshold(scores, is_correct, 0).f1 == 0


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (detection(2, BOX, 0.9), "Cls"),
        (detection(1, [0, 0, 40, 100], 0.9), "Loc"),
        (detection(2, [0, 0, 40, 100], 0.9), "Both"),
        (detection(1, FAR, 0.9), "Bkg"),
    ],
)
def test_kinds_of_error(box, kind):
    errors = analysis_of([annotation(1, BOX)], [box]).tide_errors()
    # If corrected, the first two would match the object, which then is not missed.
    is_correctable = kind in ("Cls", "Loc")
    expected = {kind} if is_correctable else {kind, "Miss"}
    assert {name for name, count in errors["counts"].items() if count} == expected
    assert errors["ap_base"] == 0
    assert errors["delta_ap"][kind] == pytest.approx(1.0 if is_correctable else 0.0)


def test_a_duplicate_costs_precision_of_what_follows():
    objects = [annotation(1, BOX), annotation(1, FAR)]
    boxes = [detection(1, BOX, 0.9), detection(1, [0, 0, 100, 99], 0.8), detection(1, FAR, 0.7)]
    errors = analysis_of(objects, boxes).tide_errors()
    assert errors["counts"]["Dupe"] == 1
    assert errors["delta_ap"]["Dupe"] == pytest.approx(1 - errors["ap_base"])
    assert errors["delta_ap"]["FP"] == errors["delta_ap"]["Dupe"]
    assert errors["delta_ap"]["FN"] == 0


def test_missed_objects_and_crowds():
    objects = [annotation(1, BOX), annotation(1, FAR), annotation(1, [600, 0, 50, 50], iscrowd=1)]
    boxes = [detection(1, BOX, 0.9), detection(1, [600, 0, 20, 20], 0.95)]
    errors = analysis_of(objects, boxes).tide_errors()
    assert errors["counts"] == {**NO_ERRORS, "Miss": 1}
    assert errors["delta_ap"]["Miss"] == errors["delta_ap"]["FN"] == pytest.approx(1 - errors["ap_base"])


def test_a_detection_that_partly_covers_a_crowd_is_on_background():
    objects = [annotation(1, BOX), annotation(1, [200, 0, 100, 100], iscrowd=1)]
    errors = analysis_of(
        objects, [detection(1, BOX, 0.9), detection(1, [180, 0, 36, 100], 0.8)]
    ).tide_errors()
    assert errors["counts"] == {**NO_ERRORS, "Bkg": 1}


def ap50(images, classes, annotations, detections):
    return measure("pycocotools", images, classes, annotations, detections).stats[1]


@pytest.mark.parametrize("kind", ["plain", "whole pixels", "class without objects", "areas of segments"])
def test_gains_are_differences_of_the_ap_of_pycocotools(kind):
    for seed in range(4):
        analysis, (images, classes, annotations, detections) = analysis_of_made_up(kind, seed)
        errors, gt = analysis.tide_errors(), analysis.gt
        assert errors["ap_base"] == pytest.approx(ap50(images, classes, annotations, detections), abs=1e-12)
        correct = set(analysis.detections.scores[analysis.outcome == CORRECT])
        no_false = [entry for entry in detections if entry["score"] in correct]
        gain = ap50(images, classes, annotations, no_false) - errors["ap_base"]
        assert errors["delta_ap"]["FP"] == pytest.approx(gain, abs=1e-12), f"seed {seed}"
        is_matched = gt.is_crowd.copy()
        is_matched[analysis.matched_idx[analysis.outcome == CORRECT]] = True
        missed = {tuple(box) for box in gt.xywh[~is_matched].tolist()}
        matched = [entry for entry in annotations if tuple(entry["bbox"]) not in missed]
        # hotcoco keeps a class that has lost all its objects, with an AP of 0.
        if set(gt.classes[is_matched & ~gt.is_crowd]) == set(gt.classes[~gt.is_crowd]):
            gain = ap50(images, classes, matched, detections) - errors["ap_base"]
            assert errors["delta_ap"]["FN"] == pytest.approx(gain, abs=1e-12), f"seed {seed}"
