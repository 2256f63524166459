import copy
import re

import numpy as np
import pytest
from PIL import Image

from atss_core.apps.report.analysis import CORRECT, IGNORED, analyze
from atss_core.apps.report.images import NUM_BEST, NUM_WORST, ImageSource
from atss_core.apps.report.report import ReportInput, build_report
from atss_core.evaluation import CocoEvaluator, VocMetrics
from tests.apps.pages import check_self_contained, open_in_browser
from tests.evaluation.coco_cases import CAT, DOG, NOTHING, detections, tiny
from tests.evaluation.made_up import make_up

SECTIONS = (
    "Metrics",
    "Metrics per class",
    "Precision and recall",
    "Score threshold",
    "Confusion matrix",
    "Error analysis (TIDE)",
    "Worst images",
    "Best images",
    "Run information",
)
NASTY = '<b>cats & "dogs"</b> $x_1$ \N{CJK UNIFIED IDEOGRAPH-732B}'


def load(image_id):
    noise = np.random.default_rng(image_id).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def report_of(coco, results, names=("cat", "dog"), load=load, **options):
    """Build the report of detections by image id on images of ``tiny``."""
    ids = [image["id"] for image in coco["images"]]
    evaluator = CocoEvaluator(coco, [7, 3][: len(names)], names, ids)
    for image_id, result in results.items():
        evaluator.process(image_id, result)
    metrics = evaluator.evaluate()
    source = ImageSource(load, {i: f"image {i}" for i in ids})
    return build_report(ReportInput("made up", evaluator, metrics, source, **options))


@pytest.fixture(scope="module")
def many_classes():
    """A report of 80 classes on 40 images."""
    rng = np.random.default_rng(0)
    coco = {
        "images": [{"id": i, "height": 100, "width": 200} for i in range(1, 41)],
        "annotations": [
            {
                "image_id": int(rng.integers(1, 41)),
                "category_id": int(rng.integers(1, 80)),
                "bbox": [*(rng.random(2) * (150, 60)).tolist(), *(rng.random(2) * 40 + 5).tolist()],
            }
            for _ in range(400)
        ],
    }
    names = [f"class {i} with a name" for i in range(1, 81)]
    evaluator = CocoEvaluator(coco, list(range(1, 81)), names, list(range(1, 41)))
    for image_id in range(1, 41):
        mine = [a for a in coco["annotations"] if a["image_id"] == image_id]
        boxes = [
            [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]
            for a in mine
        ]
        labels = [a["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 81)) for a in mine]
        evaluator.process(image_id, detections(boxes, labels, rng.random(len(mine)).tolist()))
    metrics = evaluator.evaluate()
    source = ImageSource(load, {i: f"{i}.jpg" for i in range(1, 41)})
    return build_report(
        ReportInput("eighty", evaluator, metrics, source, facts={"command": "atss test " + "x" * 300})
    )


def test_numbers_and_sections():
    text = report_of(
        tiny(),
        {1: CAT, 2: CAT},
        facts={"command": "atss test --config-file a<b"},
        configuration="TEST:\n  REPORT: true",
        voc_metrics=VocMetrics({"cat": 0.123}, {"cat": 0.456}),
    )
    page = check_self_contained(text)
    assert re.findall("<h2.*>(.*)</h2>", text) == list(SECTIONS)
    assert re.findall('<a href="#.*?">(.*?)</a>', text) == list(SECTIONS)
    assert re.findall('<a href="#(.*?)">', text) == re.findall('<h2 id="(.*?)">', text)
    for expected in ("12.3", "45.6", "atss test --config-file a<b", "REPORT: true", "2 images, 2 objects"):
        assert expected in page.text
    # AP of cat is 1, that of dog 0.
    assert "50.0" in page.text
    assert "1 missed (dog); 1 false (cat)" in page.text


def test_names_are_text_and_not_html():
    coco = tiny()
    with_names = report_of(coco, {1: CAT, 2: DOG}, names=(NASTY, "dog"))
    assert NASTY in check_self_contained(with_names).text
    assert "<b>cats" not in with_names


def test_without_detections():
    page = check_self_contained(report_of(tiny(), {1: NOTHING, 2: NOTHING}))
    assert "No detection is correct" in page.text
    assert "No other image has a correct detection" in page.text
    assert page.text.count("1 missed") == 2


def test_perfect_detections_leave_no_worst_image():
    page = check_self_contained(report_of(tiny(), {1: CAT, 2: DOG}))
    assert "No image has an error" in page.text
    assert len([image for image in page.images if image["src"].startswith("data:image/jpeg")]) == 4


def test_one_class_without_objects_and_images_without_any():
    coco = tiny()
    coco["annotations"] = coco["annotations"][:1]
    page = check_self_contained(report_of(coco, {1: CAT, 2: DOG}))
    assert "1 false (dog)" in page.text
    one = tiny(annotations=coco["annotations"])
    page = check_self_contained(report_of(one, {1: CAT, 2: NOTHING}, names=("cat",)))
    assert "100.0" in page.text


def test_crowds_are_ignored():
    coco = tiny()
    coco["annotations"][1]["iscrowd"] = 1
    inside = detections([[60, 10, 100, 50], [70, 20, 110, 60]], [2, 2], [0.95, 0.94])
    page = check_self_contained(report_of(coco, {1: CAT, 2: inside}))
    assert "1 crowds, ignore regions or difficult objects do not count" in page.text
    assert "No image has an error" in page.text
    coco["annotations"][0]["iscrowd"] = 1  # nothing is left to find
    page = check_self_contained(report_of(coco, {1: CAT, 2: inside}))
    assert "There is no object to find" in page.text


def test_unreadable_images_are_left_out_and_named():
    def broken(image_id):
        if image_id == 2:
            raise OSError("2.jpg is <damaged>; restore it")
        return load(image_id)

    text = report_of(tiny(), {1: CAT, 2: CAT}, load=broken)
    page = check_self_contained(text)
    assert "1 image could not be read and is left out: 2.jpg is <damaged>" in page.text
    assert len([image for image in page.images if image["src"].startswith("data:image/jpeg")]) == 2


def test_internal_errors_are_not_hidden():
    def faulty(image_id):
        raise KeyError(image_id)

    with pytest.raises(KeyError):
        report_of(tiny(), {1: CAT, 2: CAT}, load=faulty)


def test_report_needs_an_evaluation_and_does_not_change_it():
    coco = tiny()
    before = copy.deepcopy(coco)
    assert report_of(coco, {1: CAT, 2: CAT}) == report_of(coco, {1: CAT, 2: CAT})
    assert coco == before
    evaluator = CocoEvaluator(coco, [7, 3], ["cat", "dog"], [1, 2])
    source = ImageSource(load, {})
    with pytest.raises(ValueError, match=r"Call evaluate\(\) first"):
        build_report(ReportInput("made up", evaluator, None, source))


def test_tables_of_many_classes_are_folded_and_the_page_is_small(many_classes):
    page = check_self_contained(many_classes)
    assert "The ten classes with the lowest AP" in page.text
    assert "All 80 classes" in page.text
    assert "The most confused pairs of classes" in page.text
    assert 'class="heat"' not in many_classes, "a matrix of 80 classes cannot be read"
    assert len(page.images) == 4 + 2 * (NUM_WORST + NUM_BEST)
    assert len(many_classes) < 3_000_000


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_browser_shows_all_without_scrolling_sideways(width, many_classes, tmp_path):
    for name, text in (("many", many_classes), ("few", report_of(tiny(), {1: CAT, 2: CAT}))):
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        page, console = open_in_browser(file, width, tmp_path)
        assert console == []
        assert page["needed"] <= page["width"] == width
        assert page["broken"] == 0
        assert page["images"] >= 6


def test_browser_would_find_faults(tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        "<div style='width: 900px'>wide</div><img src='data:image/png;base64,AAAA'>"
        "<script>throw new Error('fault')</script>"
    )
    page, console = open_in_browser(file, 390, tmp_path)
    assert page["needed"] > page["width"]
    assert page["broken"] == 1
    assert any("fault" in line for line in console)
    with pytest.raises(AssertionError):
        check_self_contained('<img src="https://example.org/a.png" alt="a">')


def test_images_are_chosen_by_f1():
    images, classes, annotations, boxes = make_up("plain", 2)
    analysis = analyze(annotations, boxes, images, classes, [str(i) for i in classes])
    f1, worst, best = analysis.rank_images()
    correct, errors = np.zeros(len(images)), np.zeros(len(images))
    for outcomes, rows in ((analysis.outcome, analysis.detections), (analysis.gt_outcome, analysis.gt)):
        for image, outcome, score in zip(rows.images, outcomes, rows.scores, strict=True):
            if outcome == CORRECT and score >= analysis.threshold.score:
                correct[image] += 0.5  # the detection and its object
            elif outcome != IGNORED and score >= analysis.threshold.score:
                errors[image] += 1
    assert correct.sum() == np.trace(analysis.confusion()[:-1, :-1])
    assert len(worst) > 3
    assert set(worst) == set(np.flatnonzero(errors))
    assert set(best) == set(np.flatnonzero(correct))
    keys = [(f1[i], -errors[i]) for i in worst]
    assert keys == sorted(keys)
    keys = [(-f1[i], -correct[i]) for i in best]
    assert keys == sorted(keys)
    assert np.array_equal(f1[worst], (2 * correct / np.maximum(2 * correct + errors, 1))[worst])
