"""VOC's metric against hand-made cases and a slow loop."""

import json

import numpy as np
import pytest

from atss_core.evaluation import CocoMetrics, evaluate_voc, save_results


def annotation(image_id, box, category_id=1, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": iscrowd}


def detection(image_id, box, score, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def measure(ground_truth, results, names=("cat",)):
    metrics = evaluate_voc(ground_truth, results, range(1, len(names) + 1), names)
    return metrics.eleven_point, metrics.area


BOX = [10, 10, 20, 20]


def test_one_true_one_false_and_one_missed():
    ground_truth = [annotation(1, BOX), annotation(2, BOX)]
    # The false positive first: precision 0, then 1/2 at recall 1/2.
    results = [detection(1, [100, 100, 5, 5], 0.9), detection(1, BOX, 0.8)]
    eleven_point, area = measure(ground_truth, results)
    assert eleven_point["cat"] == pytest.approx(6 * 0.5 / 11)  # recalls 0, 0.1, ..., 0.5
    assert area["cat"] == pytest.approx(0.25)


@pytest.mark.parametrize("num_true", range(11))
def test_recall_that_equals_a_level_reaches_it(num_true):
    """3 of 10 objects are recall 0.3; the level 3 * 0.1 of other implementations is 0.30000000000000004."""
    ground_truth = [annotation(i, BOX) for i in range(10)]
    eleven_point, _ = measure(ground_truth, [detection(i, BOX, 0.9) for i in range(num_true)])
    assert eleven_point["cat"] == pytest.approx((num_true + 1) / 11 if num_true else 0)
    assert (num_true / 10 < num_true * 0.1) == (num_true in (3, 6, 7))


def test_precision_is_made_monotonically_decreasing():
    ground_truth = [annotation(i, BOX) for i in range(4)]
    results = [detection(0, BOX, 0.9), detection(0, [50, 50, 5, 5], 0.8)]
    results += [detection(1, BOX, 0.7), detection(2, BOX, 0.6)]
    eleven_point, area = measure(ground_truth, results)
    # Recall 1/4 with precision 1, 2/4 with 2/3, 3/4 with 3/4: the latter holds from 1/4 on.
    assert area["cat"] == pytest.approx(0.25 + 0.5 * 0.75)
    assert eleven_point["cat"] == pytest.approx((3 * 1.0 + 5 * 0.75) / 11)


def test_second_detection_of_an_object_is_a_false_positive():
    eleven_point, area = measure([annotation(1, BOX)], [detection(1, BOX, 0.5), detection(1, BOX, 0.9)])
    assert area["cat"] == 1.0
    assert eleven_point["cat"] == 1.0
    _, area = measure(
        [annotation(1, BOX), annotation(2, BOX)],
        [detection(1, BOX, 0.5), detection(1, BOX, 0.9), detection(2, BOX, 0.1)],
    )
    assert area["cat"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_iou_of_one_half_is_enough():
    _, area = measure([annotation(1, [0, 0, 10, 10])], [detection(1, [0, 0, 10, 5], 0.9)])
    assert area["cat"] == 1.0
    _, area = measure([annotation(1, [0, 0, 10, 10])], [detection(1, [0, 0, 10, 4.9], 0.9)])
    assert area["cat"] == 0.0


def test_difficult_objects_do_not_count():
    ground_truth = [annotation(1, BOX), annotation(1, [60, 60, 20, 20], iscrowd=1)]
    results = [detection(1, [60, 60, 20, 20], 0.9), detection(1, [61, 60, 20, 20], 0.85)]
    results += [detection(1, BOX, 0.8)]
    assert measure(ground_truth, results)[1]["cat"] == 1.0
    assert measure(ground_truth, [])[1]["cat"] == 0.0


def test_detection_matches_the_object_of_the_largest_iou_even_if_that_has_one():
    ground_truth = [annotation(1, [0, 0, 20, 20]), annotation(1, [8, 0, 20, 20])]
    results = [detection(1, [0, 0, 20, 20], 0.9), detection(1, [2, 0, 20, 20], 0.8)]  # IoU 0.82 and 0.54
    assert measure(ground_truth, results)[1]["cat"] == pytest.approx(0.5)


def test_classes_do_not_mix_and_absent_ones_are_undefined():
    ground_truth = [annotation(1, BOX, 1)]
    results = [detection(1, BOX, 0.9, 2), detection(1, BOX, 0.1, 1)]
    metrics = evaluate_voc(ground_truth, results, [1, 2], ["cat", "dog"])
    assert metrics.area == {"cat": 1.0, "dog": -1.0}
    assert metrics.overall == {"AP50_11point": 1.0, "AP50_area": 1.0}
    assert "100.0 by the 11 points of 2007, 100.0 by the area of 2010" in metrics.line()


def test_no_annotations_and_no_detections():
    metrics = evaluate_voc([], [], [1], ["cat"])
    assert metrics.overall == {"AP50_11point": -1.0, "AP50_area": -1.0}
    assert "mAP - by" in metrics.line()


def slow_ap(ground_truth, results):
    """The development kit's loop for one class."""
    taken, is_true = set(), []
    for result in sorted(results, key=lambda r: -r["score"]):
        best, best_iou = None, -1.0
        for number, other in enumerate(ground_truth):
            if other["image_id"] != result["image_id"]:
                continue
            (ax, ay, aw, ah), (bx, by, bw, bh) = result["bbox"], other["bbox"]
            width = max(min(ax + aw, bx + bw) - max(ax, bx), 0)
            height = max(min(ay + ah, by + bh) - max(ay, by), 0)
            iou = width * height / (aw * ah + bw * bh - width * height)
            if iou > best_iou:
                best, best_iou = number, iou
        if best is None or best_iou < 0.5:
            is_true.append(False)
        elif not ground_truth[best]["iscrowd"]:
            is_true.append(best not in taken)
            taken.add(best)
    total = sum(not other["iscrowd"] for other in ground_truth)
    recall = np.cumsum(is_true) / total
    precision = np.cumsum(is_true) / np.arange(1, len(is_true) + 1)
    eleven = [
        max([p for r, p in zip(recall, precision, strict=True) if r >= t / 10], default=0) for t in range(11)
    ]
    area, last = 0.0, 0.0
    for i, r in enumerate(recall):
        area += (r - last) * precision[i:].max()
        last = r
    return np.mean(eleven), area


@pytest.mark.parametrize("seed", range(5))
def test_random_detections_as_the_slow_loop(seed):
    rng = np.random.default_rng(seed)

    def box():
        return [*rng.integers(0, 30, 2).tolist(), *rng.integers(8, 30, 2).tolist()]

    ground_truth = [
        annotation(int(rng.integers(6)), box(), iscrowd=int(rng.random() < 0.2)) for _ in range(30)
    ]
    results = [detection(int(rng.integers(7)), box(), float(rng.random())) for _ in range(200)]
    results += [
        detection(gt["image_id"], [v + rng.random() for v in gt["bbox"]], float(rng.random()))
        for gt in ground_truth
    ]
    eleven_point, area = measure(ground_truth, results)
    assert (eleven_point["cat"], area["cat"]) == pytest.approx(slow_ap(ground_truth, results))


def test_file_of_metrics_holds_both(tmp_path):
    voc = evaluate_voc([annotation(1, BOX)], [detection(1, BOX, 0.9)], [1], ["cat"])
    save_results(tmp_path, [], CocoMetrics({"AP": 0.5}), voc)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["overall"] == {"AP": 0.5}
    assert content["voc"]["per_class_area"] == {"cat": 1.0}
