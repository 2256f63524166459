"""The report, as the evaluation of a user writes it."""

import json
import sys

import pytest

from atss_core.cli import check, train
from atss_core.cli import evaluate as test
from atss_core.cli.common import run
from tests.apps.pages import check_self_contained
from tests.cli.faults import edit
from tests.cli.own_data import CONFIG, ONE_STEP, dataset_overrides
from tests.dataset_formats import CONTENT, coco_tree, write_coco, write_voc


@pytest.fixture
def trained(tmp_path):
    """The command line of a run that was trained for a step and not evaluated."""
    datasets = write_coco(tmp_path / "data")
    arguments = ["--config-file", CONFIG, *ONE_STEP, *dataset_overrides(datasets, tmp_path / "run")]
    train.main([*arguments, "--skip-test"])
    return arguments


def reports(folder):
    return sorted((folder / "run" / "inference").glob("*/report.html"))


def test_evaluation_writes_a_report_and_logs_its_path(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/atss", "test", "--config-file", "a b.yaml"])
    test.main(trained)
    (file,) = reports(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"Report: {file}")
    page = check_self_contained(file.read_text(encoding="utf-8"))
    metrics = json.loads((file.parent / "metrics.json").read_text())
    assert f"{100 * metrics['overall']['AR100']:.1f}" in page.text
    for expected in (
        "atss test --config-file 'a b.yaml'",
        "model_final.pth",
        "COCO format",
        "PyTorch",
        "a.png",
    ):
        assert expected in page.text
    assert "REPORT: true" in page.text  # the configuration


WARNINGS = {
    "class": "1 image(s) have more than 100 objects of a class (up to 110 in e.png): the metrics of COCO",
    "image": "1 image(s) have more than 149 objects (up to 150 in e.png): TEST.DETECTIONS_PER_IMG keeps",
    "level": "1 image(s) have more than 140 objects (up to 150 in e.png): MODEL.ATSS.PRE_NMS_TOP_N lets",
}


@pytest.mark.parametrize(
    ("num_first", "per_image", "per_level", "expected"),
    [
        (110, 149, 140, ["class", "image", "level"]),
        (100, 149, 1000, ["image"]),
        (100, 150, 150, []),
        (110, 0, 1000, ["class"]),
    ],
)
def test_all_commands_warn_of_more_objects_than_detections(
    num_first, per_image, per_level, expected, tmp_path, capsys
):
    objects = [(int(i >= num_first), 2 * (i % 30), 2 * (i // 30), 12, 12) for i in range(150)]
    datasets = write_coco(tmp_path / "data", content={**CONTENT, "e": objects})
    for split in ("train", "val"):  # neither crowds nor boxes without area count
        edit(
            tmp_path / "data" / f"{split}.json",
            lambda tree: tree["annotations"].extend(
                {"id": 999 + i, "image_id": 5, "category_id": 1, "bbox": [1, 1, 9 * i, 9], "ignore": i}
                for i in (0, 1)
            ),
        )
    opts = ["TEST.DETECTIONS_PER_IMG", str(per_image), "MODEL.ATSS.PRE_NMS_TOP_N", str(per_level)]
    arguments = ["--config-file", CONFIG, *ONE_STEP, *opts]
    check.main([datasets[0], "--quick", *arguments, "--output-dir", str(tmp_path / "check")])
    printed = [capsys.readouterr().out]
    train.main([*arguments, *dataset_overrides(datasets, tmp_path / "run"), "--skip-test"])
    printed.append(capsys.readouterr().out)
    test.main([*arguments, *dataset_overrides(datasets, tmp_path / "run")])
    printed.append(capsys.readouterr().out)
    (file,) = reports(tmp_path)
    printed.append(check_self_contained(file.read_text(encoding="utf-8")).text)
    for text in printed:
        assert [name for name, warning in WARNINGS.items() if warning in text] == expected


def test_report_can_be_switched_off(trained, tmp_path, capsys):
    test.main([*trained, "TEST.REPORT", "False", "TEST.COCO_EVAL", "pycocotools"])
    assert reports(tmp_path) == []
    output = capsys.readouterr().out
    assert "Report:" not in output
    assert "measured with pycocotools" in output


def test_no_report_without_annotations(trained, tmp_path, capsys):
    tree = coco_tree()
    del tree["annotations"]
    (tmp_path / "data" / "val.json").write_text(json.dumps(tree))
    test.main(trained)
    assert reports(tmp_path) == []
    assert "has no annotations" in capsys.readouterr().out


def test_only_the_final_evaluation_of_a_training_writes_a_report(tmp_path, capsys):
    arguments = dataset_overrides(write_voc(tmp_path / "data"), tmp_path / "run")
    opts = [*ONE_STEP, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1"]
    train.main(["--config-file", CONFIG, *opts, *arguments])
    output = capsys.readouterr().out
    assert output.count("by the 11 points of 2007") == 2
    assert output.count("Report:") == 1
    (file,) = reports(tmp_path)
    text = check_self_contained(file.read_text(encoding="utf-8")).text
    assert "VOC 2007" in text
    assert "as this training has left them" in text


def test_unknown_library_is_refused_before_images_are_read(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(test.main, [*trained, "TEST.COCO_EVAL", "coco"])
    message = "TEST.COCO_EVAL must be one of 'auto', 'hotcoco', 'faster_coco_eval', 'pycocotools', got 'coco'"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "inference").exists()
