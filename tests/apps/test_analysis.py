import numpy as np
import pytest

from atss_core.apps.report.analysis import (
    IGNORED,
    RIGHT,
    SWAPPED,
    WRONG,
    analyze,
    best_threshold,
    score_curves,
)
from atss_core.apps.report.tide import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    LOCALIZATION,
    MISSED,
    average_precision,
    break_down,
)
from atss_core.apps.report.tide import KINDS as ERRORS
from atss_core.evaluation.backends import measure
from atss_core.evaluation.matching import rank_in
from tests.evaluation.made_up import KINDS, make_up

BOX = [0, 0, 100, 100]
FAR = [300, 300, 50, 50]
CLASSES = ["cat", "dog"]


def truth(category_id, box, image_id=1, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": iscrowd}


def found(category_id, box, score, image_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def analysis_of(ground_truth, detections, images=(1,)):
    return analyze(ground_truth, detections, images, [1, 2], CLASSES)


def analysis_of_made_up(kind, seed, **options):
    images, classes, annotations, detections = make_up(kind, seed, **options)
    analysis = analyze(annotations, detections, images, classes, [str(i) for i in classes])
    return analysis, (images, classes, annotations, detections)


@pytest.mark.parametrize("kind", KINDS)
def test_matches_give_the_ap_of_pycocotools(kind):
    for seed in range(4):
        analysis, case = analysis_of_made_up(kind, seed)
        measured = measure("pycocotools", *case)
        for k, num_objects in enumerate(analysis.num_objects.tolist()):
            rows = (analysis.found.classes == k) & (analysis.outcome != IGNORED)
            order = np.argsort(-analysis.found.scores[rows], kind="stable")
            is_right = np.isin(analysis.owner[rows][order], np.flatnonzero(~analysis.ground_truth.is_crowd))
            expected = measured.precision[0, :, k, 0]
            if num_objects:
                assert average_precision(is_right, num_objects) == pytest.approx(expected.mean(), abs=1e-12)
            else:
                assert (expected == -1).all()


@pytest.mark.parametrize("kind", ["plain", "equal scores", "only crowds", "no detections", "one object"])
def test_counts_of_matrix_threshold_and_outcomes_agree(kind):
    analysis, _ = analysis_of_made_up(kind, 0)
    matrix, threshold = analysis.confusion(), analysis.threshold
    right, num_objects = np.trace(matrix[:-1, :-1]), analysis.num_objects.sum()
    assert matrix[:-1].sum(axis=1).tolist() == analysis.num_objects.tolist()
    shown = analysis.is_shown & (analysis.outcome != IGNORED)
    assert matrix[:, :-1].sum() == np.count_nonzero(shown)
    assert right == np.count_nonzero(shown & (analysis.outcome == RIGHT))
    assert right == np.count_nonzero(analysis.gt_outcome == RIGHT)
    assert threshold.recall == pytest.approx(right / num_objects if num_objects else 0)
    assert threshold.precision == pytest.approx(right / shown.sum() if right else 0)


def test_each_outcome():
    analysis = analysis_of(
        [truth(1, BOX), truth(2, FAR), truth(1, [500, 0, 50, 50]), truth(1, [0, 500, 80, 80], iscrowd=1)],
        [
            found(1, BOX, 0.9),
            found(1, [0, 0, 100, 90], 0.8),
            found(1, FAR, 0.7),
            found(1, [0, 500, 40, 40], 0.95),
            found(1, [500, 0, 50, 50], 0.85),
        ],
    )
    assert analysis.threshold.score == 0.85
    by_score = dict(zip(analysis.found.scores.tolist(), analysis.outcome.tolist(), strict=True))
    assert by_score == {0.95: IGNORED, 0.9: RIGHT, 0.85: RIGHT, 0.8: WRONG, 0.7: WRONG}
    assert analysis.gt_outcome.tolist() == [RIGHT, WRONG, RIGHT, IGNORED]
    assert analysis.confusion().tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_another_class_takes_what_the_own_class_leaves():
    objects = [truth(1, BOX), truth(2, FAR)]
    analysis = analysis_of(
        objects, [found(2, BOX, 0.9), found(1, BOX, 0.8), found(1, FAR, 0.7), found(2, FAR, 0.2)]
    )
    # The cat is found by the second detection although the first has a higher score.
    assert analysis.gt_outcome.tolist() == [RIGHT, RIGHT]
    assert analysis.confusion().tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    analysis = analysis_of(objects, [found(1, BOX, 0.9), found(1, FAR, 0.9)])
    assert analysis.outcome.tolist() == [RIGHT, SWAPPED]
    assert analysis.gt_outcome.tolist() == [RIGHT, SWAPPED]
    assert analysis.confusion().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_best_threshold():
    scores, is_right = np.array([0.3, 0.9, 0.5, 0.5, 0.7]), np.array([False, True, True, False, True])
    best = best_threshold(scores, is_right, num_objects=4)
    # 0.9: 1 of 1, F1 0.4; 0.7: 2 of 2, F1 2/3; 0.5: 3 of 4, F1 0.75.
    assert (best.score, best.precision, best.recall, best.f1) == (0.5, 0.75, 0.75, 0.75)
    levels, precision, recall, f1 = score_curves(scores, is_right, 4, points=10)
    assert f1.max() == best.f1
    assert levels[[0, -1]].tolist() == [0, 0.9]
    assert (precision[0], recall[0]) == (0.6, 0.75)
    assert (precision[-1], recall[-1]) == (1, 0.25)
    assert best_threshold(scores[:0], is_right[:0], 4).f1 == 0
    assert best_threshold(scores, is_right, 0).f1 == 0


def test_ranks():
    assert rank_in(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in(np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        (found(2, BOX, 0.9), CLASSIFICATION),
        (found(1, [0, 0, 40, 100], 0.9), LOCALIZATION),
        (found(2, [0, 0, 40, 100], 0.9), BOTH),
        (found(1, FAR, 0.9), BACKGROUND),
    ],
)
def test_kinds_of_error(detection, kind):
    broken = break_down(analysis_of([truth(1, BOX)], [detection]))
    is_mendable = kind in (CLASSIFICATION, LOCALIZATION)
    # A mendable error would find the object, which then is not missed.
    expected = {kind} if is_mendable else {kind, MISSED}
    assert {name for name, count in broken.counts.items() if count} == expected
    assert broken.ap == 0
    assert broken.gain[kind] == pytest.approx(1.0 if is_mendable else 0.0)


def test_a_duplicate_costs_what_comes_after_it():
    objects = [truth(1, BOX), truth(1, FAR)]
    broken = break_down(
        analysis_of(objects, [found(1, BOX, 0.9), found(1, [0, 0, 100, 99], 0.8), found(1, FAR, 0.7)])
    )
    assert broken.counts[DUPLICATE] == 1
    assert broken.gain[DUPLICATE] == pytest.approx(1 - broken.ap)
    assert broken.gain_false == broken.gain[DUPLICATE]
    assert broken.gain_missed == 0


def test_missed_objects_and_crowds():
    objects = [truth(1, BOX), truth(1, FAR), truth(1, [600, 0, 50, 50], iscrowd=1)]
    broken = break_down(analysis_of(objects, [found(1, BOX, 0.9), found(1, [600, 0, 20, 20], 0.95)]))
    assert broken.counts == {**dict.fromkeys(ERRORS, 0), MISSED: 1}
    assert broken.gain[MISSED] == broken.gain_missed == pytest.approx(1 - broken.ap)


# Equal scores may be ordered otherwise there, and boxes that partly cover a crowd count as badly placed.
@pytest.mark.parametrize("kind", ["plain", "whole pixels", "single precision", "class without objects"])
def test_error_breakdown_equals_that_of_hotcoco(kind):
    hotcoco = pytest.importorskip("hotcoco")
    names = {"Cls": CLASSIFICATION, "Loc": LOCALIZATION, "Both": BOTH, "Dupe": DUPLICATE}
    names |= {"Bkg": BACKGROUND, "Miss": MISSED}
    for seed in range(8):
        analysis, (images, classes, annotations, detections) = analysis_of_made_up(kind, seed, crowds=False)
        trees = [
            {
                "images": [{"id": i} for i in images],
                "categories": [{"id": i, "name": str(i)} for i in classes],
                "annotations": entries,
            }
            for entries in (annotations, detections)
        ]
        evaluation = hotcoco.COCOeval(*(hotcoco.COCO(tree) for tree in trees), "bbox")
        evaluation.evaluate()
        theirs, mine = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1), break_down(analysis)
        assert {name: theirs["counts"][key] for key, name in names.items()} == mine.counts
        gains = {name: theirs["delta_ap"][key] for key, name in names.items()}
        assert mine.gain == pytest.approx(gains, abs=1e-12), f"seed {seed}"
        assert mine.ap == pytest.approx(theirs["ap_base"], abs=1e-12)
        assert mine.gain_false == pytest.approx(theirs["delta_ap"]["FP"], abs=1e-12)
        assert mine.gain_missed == pytest.approx(theirs["delta_ap"]["FN"], abs=1e-12)
