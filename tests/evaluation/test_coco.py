import copy
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_core.evaluation import (
    METRIC_NAMES,
    CocoEvaluator,
    CocoMetrics,
    check_expected_results,
    evaluate_voc,
    save_results,
)
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh
from tests.evaluation.coco_cases import (
    CAT,
    DOG,
    NOTHING,
    build,
    detections,
    feed,
    load_golden,
    tiny,
)


def tiny_evaluator(coco=None):
    return CocoEvaluator(coco or tiny(), [7, 3], ["cat", "dog"], [1, 2])


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_twelve_numbers_equal_the_published_implementation(ratio):
    coco, boxes, expected = load_golden()
    evaluator = build(coco)
    feed(evaluator, coco, boxes, ratio)
    metrics = evaluator.evaluate()
    assert list(metrics.overall) == list(METRIC_NAMES) == list(expected)
    assert metrics.overall == pytest.approx(expected, abs=1e-6)
    per_class = [ap for ap in metrics.per_class.values() if ap >= 0]
    assert sum(per_class) / len(per_class) == pytest.approx(expected["AP"], abs=1e-6)
    per_class_ap50 = [ap for ap in metrics.per_class_ap50.values() if ap >= 0]
    assert sum(per_class_ap50) / len(per_class_ap50) == pytest.approx(expected["AP50"], abs=1e-6)


def test_a_file_of_results_gives_the_numbers_of_pycocotools(tmp_path):
    """Coordinates that float64 holds and float32 does not; many IoUs lie exactly at a threshold."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "height": 3000, "width": 3000, "file_name": "x"} for i in (1, 2, 3)]
    annotations, boxes = [], []
    for number in range(1, 61):
        x, y = (1000 + 20 * number + int(rng.integers(1, 2**20)) / 2**20 for _ in range(2))
        known = {"image_id": number % 3 + 1, "category_id": (7, 3)[number % 2]}
        annotations.append({"id": number, **known, "bbox": [x, y, 20, 20], "area": 400, "iscrowd": 0})
        height = 20 * (10 + number % 10) / 20  # IoU 0.5, 0.55, ..., 0.95
        boxes.append({**known, "bbox": [x, y, 20, height], "score": float(rng.random())})
    coco = tiny(images=images, annotations=annotations, categories=[{"id": 7}, {"id": 3}])
    files = [tmp_path / name for name in ("annotations.json", "bbox.json")]
    for file, content in zip(files, (coco, boxes), strict=True):
        file.write_text(json.dumps(content))
    gt = COCO(str(files[0]))
    referee = COCOeval(gt, gt.loadRes(str(files[1])), "bbox")
    referee.evaluate()
    referee.accumulate()
    referee.summarize()
    evaluator = CocoEvaluator(coco, [7, 3], ["cat", "dog"], [1, 2, 3])
    feed(evaluator, coco, json.loads(files[1].read_text()))
    assert 0.2 < referee.stats[0] < 0.9
    assert list(evaluator.evaluate().overall.values()) == referee.stats.tolist()
    by_box = {tuple(result["bbox"]) for result in evaluator.results}
    assert by_box == {tuple(result["bbox"]) for result in boxes}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_detections_that_are_not_finite_are_dropped_with_one_warning(value, tmp_path, caplog):
    evaluator = tiny_evaluator()
    boxes = [[10, 20, 49, 69], [value, 20, 49, 69], [10, 20, 49, value], [10, 20, 49, 60]]
    for _ in range(2):  # an image that comes twice counts once
        evaluator.process(1, detections(boxes, [1, 1, 2, 2], [0.9, 0.95, 0.9, value]))
    evaluator.process(2, DOG)
    assert [(d["image_id"], d["bbox"]) for d in evaluator.results] == [
        (1, [10, 20, 40, 50]),
        (2, [60, 10, 100, 80]),
    ]
    assert evaluator.evaluate().overall["AP"] == pytest.approx(1)
    voc = evaluate_voc(tiny()["annotations"], evaluator.results, [7, 3], ["cat", "dog"])
    assert voc.overall == {"AP50_11point": 1, "AP50_area": 1}
    save_results(tmp_path, evaluator.results)
    json.loads((tmp_path / "bbox.json").read_text(), parse_constant=pytest.fail)
    (warning,) = (record.getMessage() for record in caplog.records if "dropped" in record.getMessage())
    assert warning.startswith("dropped 3 detections in 1 images: expected finite boxes and scores")
    evaluator.reset()
    evaluator.process(1, CAT)
    evaluator.warn_of_dropped()
    assert caplog.text.count("dropped") == 1


def test_float32_detections_are_scaled_in_float64():
    evaluator = tiny_evaluator()
    evaluator.process(1, detections([[1, 1, 7, 4]], [1], size=(30, 70)))
    x, y, width, height = evaluator.results[0]["bbox"]
    assert (x, y) == (200 / 70, 100 / 30)
    assert (width, height) == (7 * (200 / 70) - x + 1, 4 * (100 / 30) - y + 1)


@pytest.mark.parametrize("library", ["pycocotools", "hotcoco", "faster_coco_eval"])
def test_missing_areas_and_ignore_regions(library):
    """A null area is that of the box; what is marked "ignore" does not count, like a crowd."""
    pytest.importorskip(library)
    coco = tiny()
    for annotation in coco["annotations"]:
        annotation.update(area=None, iscrowd=None)
    region = {"id": 9, "image_id": 1, "category_id": 7, "bbox": [100, 20, 60, 60], "iscrowd": 0}
    coco["annotations"] += [{**region, "ignore": 1}, {**region, "bbox": [0, 80, 20, 20], "ignore": True}]
    evaluator = CocoEvaluator(coco, [7, 3], ["cat", "dog"], [1, 2], backend=library)
    cats = [[100, 20, 159, 69], [110, 20, 159, 79], [10, 20, 49, 69]]  # two in the region score best
    evaluator.process(1, detections(cats, [1, 1, 1], [0.9, 0.8, 0.7]))
    evaluator.process(2, DOG)
    assert [annotation["area"] for annotation in evaluator.ground_truth] == [2000, 8000, 3600, 400]
    assert [annotation["iscrowd"] for annotation in evaluator.ground_truth] == [0, 0, 1, 1]
    metrics = evaluator.evaluate()
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert metrics.overall["APm"] == pytest.approx(1.0)
    assert metrics.overall["APs"] == -1
    voc = evaluate_voc(coco["annotations"], evaluator.results, [7, 3], ["cat", "dog"])
    assert voc.area == {"cat": 1.0, "dog": 1.0}


def test_results_are_in_original_pixels_and_categories():
    evaluator = tiny_evaluator()
    evaluator.process(2, detections([[20, 10, 39, 49]], [2], [0.25], size=(50, 50)))
    # x times 4, y times 2, then the width of inclusive pixels.
    expected = [{"image_id": 2, "category_id": 3, "bbox": [80, 20, 77, 79], "score": 0.25}]
    assert evaluator.results == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_detections_may_be_on_another_device():
    evaluator = tiny_evaluator()
    evaluator.process(1, CAT.to("cuda"))
    assert evaluator.results[0]["bbox"] == [10, 20, 40, 50]


def test_perfect_detections_of_categories_that_are_not_sorted():
    evaluator = tiny_evaluator()
    evaluator.process(1, CAT)
    evaluator.process(2, NOTHING)
    metrics = evaluator.evaluate()
    # Annotation id 0 must count as a match.
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 0.0})
    assert metrics.overall["AP"] == pytest.approx(0.5)
    assert metrics.overall["APs"] == -1


def test_objects_beyond_max_dets_cost_ap_even_if_all_are_detected():
    """The check and the report warn of it: 150 objects, of which 100 detections count."""
    boxes = [[10.0 * (i % 15), 9.0 * (i // 15), 8, 8] for i in range(150)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 7, "bbox": box} for i, box in enumerate(boxes, start=1)
    ]
    evaluator = tiny_evaluator(tiny(annotations=annotations))
    corners = from_xywh(torch.tensor(boxes))
    evaluator.process(1, detections(corners.tolist(), [1] * 150, [1 - i / 1000 for i in range(150)]))
    evaluator.process(2, NOTHING)
    metrics = evaluator.evaluate()
    assert metrics.overall["AP"] == pytest.approx(67 / 101)
    assert metrics.overall["AR100"] == pytest.approx(100 / 150)


def test_only_processed_images_count():
    evaluator = tiny_evaluator()
    evaluator.process(1, CAT)
    metrics = evaluator.evaluate()
    assert metrics.overall["AP"] == pytest.approx(1.0)
    assert metrics.per_class["dog"] == -1


def test_no_detections_give_zeros():
    evaluator = tiny_evaluator()
    for image_id in (1, 2):
        evaluator.process(image_id, NOTHING)
    metrics = evaluator.evaluate()
    assert evaluator.results == []
    assert metrics.overall["AP"] == metrics.overall["AR100"] == 0
    assert metrics.per_class == {"cat": 0, "dog": 0}


def test_an_image_that_comes_twice_counts_once():
    evaluator = tiny_evaluator()
    for image_id, result in ((2, DOG), (1, CAT), (2, DOG)):
        evaluator.process(image_id, result)
    assert [r["image_id"] for r in evaluator.results] == [1, 2]
    assert evaluator.evaluate().overall["AP"] == pytest.approx(1.0)


def test_reset_removes_all_detections():
    evaluator = tiny_evaluator()
    evaluator.process(1, CAT)
    evaluator.reset()
    assert evaluator.results == []
    with pytest.raises(ValueError, match=r"Call process\(\) first"):
        evaluator.evaluate()


def test_evaluate_neither_prints_nor_changes_the_json(capsys):
    coco = tiny()
    before = copy.deepcopy(coco)
    evaluator = tiny_evaluator(coco)
    evaluator.process(1, CAT)
    evaluator.evaluate()
    assert coco == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("annotations", [[], None])
def test_without_annotations_results_can_be_written_but_not_measured(annotations, tmp_path):
    coco = tiny(annotations=annotations)
    if annotations is None:
        del coco["annotations"]
    evaluator = tiny_evaluator(coco)
    evaluator.process(1, CAT)
    with pytest.raises(ValueError, match="has no annotations"):
        evaluator.evaluate()
    save_results(tmp_path / "new", evaluator.results)
    assert json.loads((tmp_path / "new" / "bbox.json").read_text()) == evaluator.results
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["bbox.json"]


def test_save_results_replaces_whole_files(tmp_path):
    metrics = CocoMetrics({"AP": 0.5}, {"cat": 0.5}, {"cat": 0.75})
    (tmp_path / "metrics.json").write_text("old")
    save_results(tmp_path, [], metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics.to_dict()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bbox.json", "metrics.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    save_results(tmp_path, [{"score": 1.0}])
    with pytest.raises(TypeError):
        save_results(tmp_path, [{"score": torch.ones(1)}])
    assert json.loads((tmp_path / "bbox.json").read_text()) == [{"score": 1.0}]
    assert len(list(tmp_path.iterdir())) == 1, "nothing half-written may stay"


@pytest.mark.parametrize(
    ("image_id", "result", "message"),
    [
        (3, CAT, "got 3"),
        (1, detections([[0, 0, 9, 9]], [0]), r"labels in 1\.\.2, got 0"),
        (1, detections([[0, 0, 9, 9]], [3]), r"labels in 1\.\.2, got 3"),
        (1, BoxList(torch.zeros(1, 4), (100, 200), labels=torch.ones(1)), "not ground truth"),
    ],
)
def test_process_refuses(image_id, result, message):
    with pytest.raises(ValueError, match=message):
        tiny_evaluator().process(image_id, result)


def test_constructor_refuses():
    with pytest.raises(ValueError, match="got 1 names"):
        CocoEvaluator(tiny(), [7, 3], ["cat"], [1, 2])
    with pytest.raises(ValueError, match="got 9"):
        CocoEvaluator(tiny(), [7, 3], ["cat", "dog"], [1, 9])


def test_table_shows_every_number_within_100_columns():
    coco, boxes, _ = load_golden()
    evaluator = build(coco)
    feed(evaluator, coco, boxes)
    metrics = evaluator.evaluate()
    lines = metrics.table().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == list(METRIC_NAMES)
    assert lines[1].split()[:2] == ["30.3", "61.2"]
    text = "\n".join(lines)
    for name, ap in metrics.per_class.items():
        assert f"{name} " in text
        assert ap == -1 or f"{100 * ap:.1f}" in text


def test_table_order_and_undefined():
    metrics = CocoMetrics({"AP": 0.25, "APs": -1.0}, {"b": 0.1, "C": 0.3, "a": 0.2}, {"a": -1.0})

    def order(table):
        return [word for line in table.splitlines()[4:] for word in line.split() if word.isalpha()]

    assert metrics.table().splitlines()[1].split() == ["25.0", "-"]
    assert order(metrics.table()) == ["a", "b", "C"]
    assert order(metrics.table(sort_by="AP")) == ["C", "a", "b"]
    with pytest.raises(ValueError, match="name, AP"):
        metrics.table(sort_by="size")


@pytest.mark.parametrize("length", [1, 30, 85, 300])
def test_table_keeps_its_width_with_long_names(length):
    table = CocoMetrics({"AP": 0.5}, {letter * length: 0.5 for letter in "abc"}).table()
    assert max(map(len, table.splitlines())) <= 100
    assert table.count("50.0") == 4


def test_expected_results_pass_and_fail():
    metrics = CocoMetrics({"AP": 0.390, "AP50": 0.500})
    expected = [("bbox", "AP", 0.393, 0.001), ["bbox", "AP50", 0.576, 0.001]]
    assert check_expected_results(metrics, expected, sigma_tol=4) == [
        "bbox AP50 is 0.5000, expected 0.5760 +- 0.0040"
    ]
    assert len(check_expected_results(metrics, expected, sigma_tol=2)) == 2
    assert check_expected_results(metrics, [], sigma_tol=4) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("segm", "AP", 0.3, 0.1), "task 'bbox', got 'segm'"),
        (("bbox", "mAP", 0.3, 0.1), "AP, AP50, got 'mAP'"),
        (("bbox", "AP", 0.3), "mean, std"),
    ],
)
def test_expected_results_refuse(entry, message):
    with pytest.raises(ValueError, match=message):
        check_expected_results(CocoMetrics({"AP": 0.39, "AP50": 0.5}), [entry], sigma_tol=4)
