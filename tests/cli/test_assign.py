"""The viewer of label assignment: its counts against a slow count, its page, and its errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from atss_core.apps.assign.assignment import (
    build_assigners,
    choose_images,
    choose_objects,
    count_positives,
)
from atss_core.apps.assign.drawings import LEVEL_COLORS, POSITIVE, ObjectDrawing
from atss_core.cli import assign
from atss_core.cli.common import run
from atss_core.cli.datasets import open_dataset
from atss_core.config import load_cfg
from atss_core.modeling import build_assigner
from atss_core.modeling.build import build_anchor_generator
from atss_core.structures import BoxList
from tests.apps.pages import check_self_contained
from tests.dataset_formats import CONTENT, coco_tree, write_coco
from tests.golden import ROOT

CONFIG = str(ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml")
SMALL = ["INPUT.MIN_SIZE_TEST", "96"]
ASSIGNERS = ["ATSS", "ATSS + AT_LEAST_ONE", "SSC", "IoU", "TOPK"]
# Objects of a pixel or two, some of which hold no centre of an anchor; names that HTML must not take.
TINY_OBJECTS = {**CONTENT, "a&b": [(0, x, 1 + x // 2, 2, 2) for x in range(0, 60, 3)]}
NAMES = ["<b>cat</b>", "dog & co"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assign")
    path = write_coco(folder / "data", content=TINY_OBJECTS, names=NAMES)[0]
    assign.main([path, "--config-file", CONFIG, "--output-dir", str(folder / "out"), *SMALL])
    return path, folder / "out" / "data_train"


def slow_count(path, name):
    """Return (area, positives) of each object."""
    opts = [*SMALL, "MODEL.ATSS.POSITIVE_TYPE", name.split(" ")[0]]
    opts += ["MODEL.ATSS.AT_LEAST_ONE", str("AT_LEAST_ONE" in name)]
    cfg = load_cfg(CONFIG, opts)
    dataset = open_dataset(cfg, path)
    counts = []
    for index in range(len(dataset)):
        target = dataset.target(index).resize((96, 128))
        matched = build_assigner(cfg)(build_anchor_generator(cfg).for_image((96, 128)), [target.boxes])[0]
        for i, (x1, y1, x2, y2) in enumerate(target.boxes.tolist()):
            counts.append(((x2 - x1 + 1) * (y2 - y1 + 1), matched.tolist().count(i)))
    return counts


@pytest.mark.parametrize("name", ASSIGNERS)
def test_report_equals_a_slow_count(written, name):
    path, folder = written
    report = json.loads((folder / "report.json").read_text())
    assert list(report["assigners"]) == ASSIGNERS
    counted = slow_count(path, name)
    assert report["num_objects"] == len(counted) > 20
    for size, (low, high) in {"S": (0, 32), "M": (32, 96), "L": (96, 1e9), "all": (0, 1e9)}.items():
        counts = [n for pixels, n in counted if low**2 <= pixels < high**2]
        entry = report["assigners"][name][size]
        assert entry["objects"] == len(counts)
        assert entry["without_positive"] == counts.count(0)
        if counts:
            assert entry["positives_per_object"] == pytest.approx(sum(counts) / len(counts))
            assert entry["share_without_positive"] == pytest.approx(counts.count(0) / len(counts))
        else:
            assert entry["positives_per_object"] is entry["share_without_positive"] is None


def test_at_least_one_is_never_worse(written):
    assigners = json.loads((written[1] / "report.json").read_text())["assigners"]
    before, after = assigners["ATSS"], assigners["ATSS + AT_LEAST_ONE"]
    assert before["all"]["without_positive"] > 0
    assert after["all"]["without_positive"] == 0
    assert all(after[size]["without_positive"] <= before[size]["without_positive"] for size in before)


def test_thresholds_of_the_report(written):
    report = json.loads((written[1] / "report.json").read_text())
    for entry in report["thresholds"].values():
        assert sum(entry["histogram"]) == entry["objects"]
        quantiles = list(entry["quantiles"].values())
        assert entry["objects"] == 0 or (quantiles == sorted(quantiles) and 0 < quantiles[0] < 1)


def test_page_is_whole_and_needs_no_network(written):
    page = check_self_contained((written[1] / "index.html").read_text(encoding="utf-8"), written[1])
    assert "b" not in page.tags  # the names of classes are no tags
    assert "<b>cat</b>" in page.text
    assert "a&b.png" in page.text
    assert len(page.addresses) > 30
    assert "images/1_assigners.jpg" in page.addresses


def test_second_run_removes_old_images_and_prints_the_table(written, tmp_path, capsys):
    flags = ["--config-file", CONFIG, "--output-dir", str(tmp_path), "--num-images", "2"]
    for number in ("1", "0"):
        assign.main([written[0], *flags, "--num-drawn", number, *SMALL])
        drawn = list((tmp_path / "data_train" / "images").glob("*_assigners.jpg"))
        assert len(drawn) == int(number)
    output = capsys.readouterr().out
    assert "objects of 2 images" in output
    assert "ATSS + AT_LEAST_ONE" in output
    assert "objects without a positive, %" in output


def test_errors_are_one_line(written, tmp_path, capsys):
    (tmp_path / "empty.json").write_text(json.dumps({**coco_tree(), "annotations": []}))
    images = written[0].split("@")[1]
    for arguments, message in (
        ([], "there is no dataset to look at"),
        ([written[0], "--num-images", "0"], "--num-images of at least 1"),
        ([f"{tmp_path / 'empty.json'}@{images}"], "no image has an object to learn from"),
    ):
        with pytest.raises(SystemExit):
            run(assign.main, [*arguments, "--config-file", CONFIG, "--output-dir", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_candidates_have_the_colours_of_their_levels():
    cfg = load_cfg(CONFIG)
    anchors = build_anchor_generator(cfg).for_image((96, 128))
    target = BoxList(torch.tensor([[40.0, 30.0, 79.0, 69.0]]), (96, 128), labels=torch.tensor([1]))
    atss = build_assigners(cfg)["ATSS"]
    candidates = atss.candidates(anchors, [target.boxes])
    (matched,) = atss(anchors, [target.boxes])
    drawing = ObjectDrawing(anchors, target, candidates, matched, 0, "1 cat")
    positives = int((matched == 0).sum())
    assert drawing.title == f"1 cat, 40 x 40 px: {positives} positive of {len(drawing.states)} candidates"
    assert np.count_nonzero(drawing.states == POSITIVE) == positives > 0
    pixels = np.asarray(drawing.draw(Image.new("RGB", (128, 96), "white")))[:300, 410:]  # IoUs by level
    for level in set(drawing.levels):
        color = ImageColor.getrgb(LEVEL_COLORS[level])
        assert (pixels == color).all(axis=-1).any(), f"level {level}"


def test_assigners_of_any_configuration():
    ssc = ["MODEL.ATSS.POSITIVE_TYPE", "SSC", "MODEL.ATSS.CENTER_SAMPLING_RADIUS", "1.5"]
    assigners = build_assigners(load_cfg(CONFIG, ssc))
    assert assigners["SSC"].center_radius == 1.5
    assigners = build_assigners(load_cfg(CONFIG, ["MODEL.ATSS.POSITIVES_IN_BOX", "False"]))
    assert not assigners["ATSS"].positives_in_box
    assert [assigners[name].at_least_one for name in ASSIGNERS[:2]] == [False, True]


def test_choice_of_objects_and_images():
    areas = np.array([50.0, 1.0, 7.0, 3.0, 90.0, 20.0, 8.0, 30.0])
    counts = np.array([1, 1, 1, 1, 1, 0, 1, 1])
    chosen = choose_objects(areas, counts, 4)
    assert {1, 4, 5} <= set(chosen)  # the smallest, the largest and the one without
    assert len(chosen) == 4
    assert areas[chosen].tolist() == sorted(areas[chosen])
    assert choose_objects(areas[:2], counts[:2], 6) == [1, 0]
    assert choose_objects(areas[:1], counts[:1], 6) == [0]
    assert choose_objects(areas, 0 * counts, 6)[:1] == [1]
    assert choose_images({0: 0, 1: 4, 2: 9}, 2)[-1] == 2
    assert choose_images({0: 0}, 6) == [0]
    assert count_positives(torch.tensor([-1, 2, -2, 2, 0]), 4).tolist() == [1, 0, 2, 0]
