"""The commands, as a user calls them."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import demo, evaluate, quickstart, train
from atss_core.cli.common import run
from atss_core.engine import Predictor
from tests.conftest import QUICK
from tests.golden import ROOT

TRAIN = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(QUICK), "--skip-test"]


def weights(folder):
    return read_checkpoint(folder / "run" / "model_final.pth")["model"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different


@pytest.fixture
def trained(tiny, tmp_path):
    train.main(["--config-file", str(QUICK), "--skip-test", *tiny])
    return tmp_path / "run"


def test_train_writes_its_files_and_evaluates(tiny, tmp_path, capsys):
    train.main(["--config-file", str(QUICK), *tiny])
    folder = tmp_path / "run"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("tensorboard/")}  # where it is installed
    assert names == {
        *("config.yml", "log.txt", "metrics.jsonl", "last_checkpoint"),
        *("model_0000002.pth", "model_0000004.pth", "model_final.pth"),
        *(f"inference/shapes_val/{name}" for name in ("bbox.json", "metrics.json", "predictions.pth")),
        "inference/shapes_val/report.html",
    }
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    output = capsys.readouterr().out
    for phrase in (
        "eta 0:00:",
        "iter 6/6",
        "loss_centerness",
        "data 0.",
        "network",
        "post-processing",
        "operators: ",
        "AP50",
        "star",
    ):
        assert phrase in output
        assert phrase in (folder / "log.txt").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert len(json.loads((folder / "inference/shapes_val/metrics.json").read_text())["overall"]) == 12


def test_test_net_agrees_with_the_evaluation_after_training(tiny, tmp_path):
    train.main(["--config-file", str(QUICK), *tiny])
    folder = tmp_path / "run"
    after_training = (folder / "inference/shapes_val/bbox.json").read_text()
    opts = [*tiny[:-1], str(tmp_path / "elsewhere"), "MODEL.WEIGHT", str(folder / "model_final.pth")]
    evaluate.main(["--config-file", str(QUICK), *opts])
    results = tmp_path / "elsewhere" / "inference" / "shapes_val"
    assert (results / "bbox.json").read_text() == after_training
    predictions = torch.load(results / "predictions.pth", weights_only=True)
    assert len(predictions) == 8
    num_detections = sum(len(p["scores"]) for p in predictions.values())
    assert num_detections == len(json.loads(after_training)) > 0


@pytest.mark.parametrize("pointer", ["model_final.pth", "model_0000009.pth", None])
def test_test_net_reads_the_last_checkpoint_of_the_folder_once(pointer, tiny, trained, capsys, monkeypatch):
    if pointer is None:
        (trained / "last_checkpoint").unlink()
    else:
        (trained / "last_checkpoint").write_text(pointer)
    read, load = [], torch.load

    def spy(file, *arguments, **options):
        read.append(Path(file.name).name)
        return load(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", spy)
    evaluate.main(["--config-file", str(QUICK), *tiny])
    assert f"Evaluating {trained / 'model_final.pth'}" in capsys.readouterr().out
    assert read == ["model_final.pth"]


@pytest.mark.parametrize(
    ("num_workers", "moment"), [(0, "config.yml"), (0, "model_0000004.pth"), (2, "model_0000004.pth")]
)
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny, tmp_path, num_workers, moment):
    opts = [
        *tiny,
        "DATALOADER.NUM_WORKERS",
        str(num_workers),
        "SOLVER.MAX_ITER",
        "30",
        "SOLVER.LOG_PERIOD",
        "3",
    ]
    train.main(["--config-file", str(QUICK), "--skip-test", *opts])
    expected = weights(tmp_path)
    interrupted = tmp_path / "interrupted"
    opts[opts.index("OUTPUT_DIR") + 1] = str(interrupted / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*TRAIN, *opts], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (interrupted / "run" / moment).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (interrupted / "run" / "model_final.pth").exists()
    train.main(["--config-file", str(QUICK), "--skip-test", *opts])
    assert_equal(weights(interrupted), expected)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "interrupted/run")]
    first, second = (
        [{k: json.loads(line)[k] for k in ("iteration", "loss", "lr")} for line in m.splitlines()]
        for m in metrics
    )
    assert first == second


def test_finished_run_is_not_trained_again(tiny, trained, capsys):
    before = (trained / "model_final.pth").stat().st_mtime_ns
    train.main(["--config-file", str(QUICK), "--skip-test", *tiny])
    assert "is trained already (6 iterations)" in capsys.readouterr().out
    assert (trained / "model_final.pth").stat().st_mtime_ns == before


def test_training_goes_on_from_other_weights(tiny, trained, tmp_path, capsys):
    opts = [*tiny[:-1], str(tmp_path / "second" / "run"), "MODEL.WEIGHT", str(trained / "model_final.pth")]
    train.main(["--config-file", str(QUICK), "--skip-test", *opts, "SOLVER.BASE_LR", "0.0"])
    loaded, now = weights(tmp_path), weights(tmp_path / "second")
    assert torch.equal(loaded["rpn.head.cls_logits.weight"], now["rpn.head.cls_logits.weight"])
    assert "Loaded" in capsys.readouterr().out


def reverse_ids(tree):
    """Give a dataset of 6 classes their ids in the opposite order."""
    for category in tree["categories"]:
        category["id"] = 7 - category["id"]
    for annotation in tree["annotations"]:
        annotation["category_id"] = 7 - annotation["category_id"]


def best_scores(file):
    """The highest score by image and category."""
    best = {}
    for detection in json.loads(file.read_text()):
        key = detection["image_id"], detection["category_id"]
        best[key] = max(best.get(key, 0.0), detection["score"])
    return best


def test_classes_in_another_order_are_matched_by_name(tiny, trained, shapes, tmp_path, capsys):
    shutil.copytree(shapes, tmp_path / "data")
    for file in (tmp_path / "data" / "shapes" / "annotations").glob("*.json"):
        tree = json.loads(file.read_text())
        reverse_ids(tree)
        file.write_text(json.dumps(tree))
    given = ["MODEL.WEIGHT", str(trained / "model_final.pth"), "MODEL.ATSS.INFERENCE_TH", "0.0"]
    other = ["DATASETS.DATA_DIR", str(tmp_path / "data")]
    scores = []
    for name, opts in (("original", []), ("reversed", other)):
        evaluate.main(["--config-file", str(QUICK), *tiny[:-1], str(tmp_path / name), *given, *opts])
        scores.append(best_scores(tmp_path / name / "inference/shapes_val/bbox.json"))
    assert "matched by name: loaded for 6 (" in capsys.readouterr().out
    swapped = {(image_id, 7 - category_id): score for (image_id, category_id), score in scores[1].items()}
    assert swapped == pytest.approx(scores[0], abs=1e-5)  # sums of other rows may round otherwise
    assert scores[1] != pytest.approx(scores[0], abs=1e-3)
    opts = [*tiny[:-1], str(tmp_path / "second" / "run"), *given, *other, "SOLVER.BASE_LR", "0.0"]
    train.main(["--config-file", str(QUICK), "--skip-test", *opts])
    bias = "rpn.head.cls_logits.bias"
    assert torch.equal(weights(tmp_path / "second")[bias], weights(tmp_path)[bias].flip(0))
    with pytest.raises(ValueError, match=r"was trained on the classes"):
        train.main(["--config-file", str(QUICK), "--skip-test", *tiny, *other])


def test_changed_anchors_are_not_resumed_or_evaluated(tiny, trained, capsys):
    small = ["MODEL.ATSS.ANCHOR_SIZES", "(16, 32, 64, 128, 256)"]
    for command in (train.main, evaluate.main):
        with pytest.raises(ValueError, match=r"other anchors .*cell_anchors.0 .*-11.5.* -> .*-3.5"):
            command(["--config-file", str(QUICK), *tiny, *small])
    with pytest.raises(ValueError, match="other anchors"):
        Predictor.from_config(QUICK, trained / "model_final.pth", [*tiny, *small])


def test_non_finite_loss_stops_and_overwrites_nothing(tiny, tmp_path, capsys):
    # The learning rate explodes after two good iterations and a checkpoint.
    opts = [*tiny, "SOLVER.STEPS", str((2,) * 10), "SOLVER.GAMMA", "1000", "SOLVER.MAX_ITER", "40"]
    with pytest.raises(SystemExit) as stop:
        run(train.main, ["--config-file", str(QUICK), "--skip-test", *opts])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "the loss is not finite at iteration" in message
    assert "loss_cls" in message
    assert "images [" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "model_final.pth").exists()
    checkpoints = list((tmp_path / "run").glob("*.pth"))
    assert [c.name for c in checkpoints] == ["model_0000002.pth"]
    assert all(v.isfinite().all() for v in read_checkpoint(checkpoints[0])["model"].values())
    assert "NonFiniteLossError" in (tmp_path / "run" / "log.txt").read_text()


def spoil(kind, own_shapes):
    folder, edit = own_shapes
    annotations = folder / "shapes" / "annotations" / "train.json"
    if kind == "missing annotations":
        annotations.unlink()
    elif kind == "malformed JSON":
        annotations.write_text(annotations.read_text()[:500])
    elif kind == "unknown image":
        edit(lambda c: c["annotations"][3].update(image_id=999))
    elif kind == "unknown category":
        edit(lambda c: c["annotations"][3].update(category_id=77))
    elif kind == "NaN box":
        edit(lambda c: c["annotations"][3].update(bbox=[1.0, float("nan"), 5.0, 5.0]))
    elif kind == "classes":
        edit(lambda c: c["categories"].append({"id": 9, "name": "blob"}))
    elif kind == "missing image":
        next((folder / "shapes" / "train").iterdir()).unlink()
    elif kind == "truncated image":
        image = next((folder / "shapes" / "train").iterdir())
        image.write_bytes(image.read_bytes()[:300])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "phrases"),
    [
        ("missing annotations", ["train.json", "DATASETS.DATA_DIR"]),
        ("malformed JSON", ["train.json is not valid JSON"]),
        ("unknown image", ["train.json", "999"]),
        ("unknown category", ["train.json", "77"]),
        ("NaN box", ["train.json", "nan", "finite"]),
        ("classes", ["7 classes", "NUM_CLASSES", "8", "it is 7"]),
        ("missing image", ["1 of 8 images are not in", "SKIP_CORRUPT"]),
        ("truncated image", ["image id", "annotation ids", "SKIP_CORRUPT"]),
    ],
)
def test_bad_data_ends_in_one_line(kind, phrases, num_workers, own_shapes, tiny, capsys):
    spoil(kind, own_shapes)
    opts = [*tiny, "DATASETS.DATA_DIR", str(own_shapes[0]), "DATALOADER.NUM_WORKERS", str(num_workers)]
    with pytest.raises(SystemExit):
        run(train.main, ["--config-file", str(QUICK), *opts])
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for phrase in phrases:
        assert phrase in message


def test_faults_of_the_test_set_are_found_before_training(own_shapes, tiny, tmp_path, capsys):
    file = own_shapes[0] / "shapes" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "blob"})
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        run(train.main, ["--config-file", str(QUICK), *tiny, "DATASETS.DATA_DIR", str(own_shapes[0])])
    assert "shapes_val has 7 classes" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.pth"))


def test_best_checkpoint_needs_annotations(own_shapes, tiny, tmp_path, capsys):
    file = own_shapes[0] / "shapes" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    opts = [*tiny, "DATASETS.DATA_DIR", str(own_shapes[0]), "TEST.EVAL_PERIOD", "2"]
    with pytest.raises(SystemExit):
        run(train.main, ["--config-file", str(QUICK), *opts])
    message = capsys.readouterr().err
    assert "TEST.EVAL_PERIOD: expected a first dataset in DATASETS.TEST with annotations" in message
    assert not list((tmp_path / "run").glob("*.pth"))


def test_boxes_without_area_are_counted_and_dropped(own_shapes, tiny, capsys):
    folder, edit = own_shapes

    def flatten(content):
        content["annotations"][0]["bbox"] = [5.0, 5.0, 0.0, 9.0]
        content["annotations"][1]["bbox"] = [5.0, 5.0, -3.0, 9.0]

    edit(flatten)
    train.main(["--config-file", str(QUICK), "--skip-test", *tiny, "DATASETS.DATA_DIR", str(folder)])
    assert "2 box" in capsys.readouterr().out


def test_corrupt_images_are_skipped_on_demand(own_shapes, tiny, capsys):
    spoil("truncated image", own_shapes)
    opts = [*tiny, "DATASETS.DATA_DIR", str(own_shapes[0]), "DATALOADER.SKIP_CORRUPT", "True"]
    train.main(["--config-file", str(QUICK), "--skip-test", *opts])
    assert "Skipped image 1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "opts", "message"),
    [
        (train.main, ["SOLVER.BASE_RL", "1"], "did you mean SOLVER.BASE_LR"),
        (train.main, ["MODEL.WEIGHT", "nowhere.pth"], "no weights at nowhere.pth"),
        (train.main, ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
        (train.main, ["DATASETS.TRAIN", "('shape_train',)"], "did you mean shapes_train"),
        (train.main, ["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH"),
        (train.main, ["TEST.IMS_PER_BATCH", "0"], "TEST.IMS_PER_BATCH must be in [1, 1e6], got 0"),
        (train.main, ["SOLVER.LOG_PERIOD", "0"], "SOLVER.LOG_PERIOD must be in [1, 1e9], got 0"),
        (train.main, ["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER must be in [1, 1e9], got 0"),
        (evaluate.main, [], "MODEL.WEIGHT: expected a trained detector, got '', and OUTPUT_DIR"),
    ],
)
def test_wrong_settings_end_in_one_line(command, opts, message, tiny, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, ["--config-file", str(QUICK), *tiny, *opts])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_checkpoint_of_another_architecture_is_refused(tiny, trained, capsys):
    opts = [*tiny, "MODEL.WEIGHT", str(trained / "model_final.pth"), "MODEL.ATSS.NUM_CONVS", "2"]
    with pytest.raises(SystemExit):
        run(evaluate.main, ["--config-file", str(QUICK), *opts])
    assert "missing rpn.head.cls_tower.3.weight" in capsys.readouterr().err


def test_training_does_not_write_over_the_weights_it_starts_from(tiny, trained, tmp_path, capsys):
    own = tmp_path / "own" / "model_best.pth"  # in OUTPUT_DIR, without a checkpoint to resume
    own.parent.mkdir()
    shutil.copy(trained / "model_final.pth", own)
    before = own.read_bytes()
    with pytest.raises(SystemExit):
        run(
            train.main,
            ["--config-file", str(QUICK), *tiny, "MODEL.WEIGHT", str(own), "OUTPUT_DIR", str(own.parent)],
        )
    assert "model_best.pth would be overwritten" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_demo_draws_every_image(tiny, trained, images, tmp_path, capsys):
    flags = ["--weights", str(trained / "model_final.pth"), "--images-dir", str(images)]
    flags += ["--output-dir", str(tmp_path / "out"), "--score-threshold", "0.0", "--config-file", str(QUICK)]
    demo.main([*flags, *tiny])
    for name in ("a.jpg", "b.png"):
        drawn, original = Image.open(tmp_path / "out" / name), Image.open(images / name)
        assert drawn.width > original.width
        assert drawn.width / drawn.height == original.width / original.height
    output = capsys.readouterr().out
    assert "ms per image (median of 2" in output
    assert "a.jpg: " in output


MULTI_SCALE = [
    *("TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.VOTE", "True", "TEST.BBOX_AUG.H_FLIP", "True"),
    *("TEST.BBOX_AUG.SCALES", "(48, 96)", "TEST.BBOX_AUG.SCALE_H_FLIP", "True"),
]


def test_test_time_augmentation(tiny, trained, tmp_path, capsys):
    evaluate.main(["--config-file", str(QUICK), *tiny])
    folder = tmp_path / "run" / "inference" / "shapes_val"
    single_scale = json.loads((folder / "bbox.json").read_text())
    evaluate.main(["--config-file", str(QUICK), *tiny, *MULTI_SCALE])
    merged = json.loads((folder / "bbox.json").read_text())
    assert {d["image_id"] for d in merged} == {d["image_id"] for d in single_scale}
    assert merged != single_scale
    assert "AP50" in capsys.readouterr().out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_demo_never_draws_over_its_images(tiny, trained, images, tmp_path, capsys):
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").symlink_to(images / "b.png")
    before = contents(images)
    flags = ["--weights", str(trained / "model_final.pth"), "--config-file", str(QUICK)]
    for folder in (images, tmp_path / "link", tmp_path / "out", images / ".." / images.name):
        with pytest.raises(SystemExit) as stop:
            run(demo.main, [*flags, "--images-dir", str(images), "--output-dir", str(folder), *tiny])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "would be overwritten" in error
        assert "Give another --output-dir." in error
        assert contents(images) == before


@pytest.mark.parametrize("skip", [False, True])
def test_demo_goes_on_after_an_unreadable_image(tiny, trained, images, tmp_path, capsys, skip):
    (images / "0.jpg").write_bytes((images / "a.jpg").read_bytes()[:300])
    flags = ["--weights", str(trained / "model_final.pth"), "--images-dir", str(images)]
    flags += ["--output-dir", str(tmp_path / "out"), "--config-file", str(QUICK)]
    with pytest.raises(SystemExit) as stop:
        run(demo.main, [*flags, *tiny, "DATALOADER.SKIP_CORRUPT", str(skip)])
    assert stop.value.code == (0 if skip else 1)
    captured = capsys.readouterr()
    assert "median of 2" in captured.out
    lines = captured.err.splitlines()
    assert any(line.startswith(f"skipped: {images / '0.jpg'} cannot be read") for line in lines)
    assert lines[-1] == "1 of 3 files cannot be read and are skipped"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jpg", "b.png"}
    for path in images.iterdir():
        path.write_text("no image")
    with pytest.raises(SystemExit) as stop:
        run(demo.main, [*flags, *tiny])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: none of the 3 files can be read")


def test_demo_with_test_time_augmentation(tiny, trained, images, tmp_path):
    flags = ["--weights", str(trained / "model_final.pth"), "--images-dir", str(images)]
    flags += ["--output-dir", str(tmp_path / "out"), "--config-file", str(QUICK)]
    demo.main([*flags, *tiny, *MULTI_SCALE])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jpg", "b.png"}


def test_demo_without_weights_says_where_to_get_them():
    process = subprocess.run(
        [sys.executable, "demo/atss_demo.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert process.stderr.count("\n") == 1
    for phrase in ("ATSS_R_50_FPN_1x.pth", "https://", "--weights FILE"):
        assert phrase in process.stderr


def test_demo_without_images_is_explained(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ["--weights", str(trained / "model_final.pth"), "--images-dir", str(tmp_path / "empty")]
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        demo.main(flags)


def test_predictor_finds_boxes_in_the_pixels_of_the_image(tiny, trained, images):
    predictor = Predictor.from_config(
        QUICK, trained / "model_final.pth", [*tiny, "MODEL.ATSS.INFERENCE_TH", "0.0"]
    )
    assert predictor.class_names == ["circle", "square", "triangle", "star", "ring", "cross"]
    result = predictor(images / "a.jpg")
    assert result.image_size == (60, 80)
    assert len(result) > 0
    assert result.boxes.min() >= 0
    assert result.boxes[:, 2].max() <= 80
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    again = predictor(Image.open(images / "a.jpg"))
    assert torch.equal(again.boxes, result.boxes)


def test_quickstart_writes_images_curves_and_metrics(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        quickstart, "write_shapes", lambda folder: None
    )  # the session's small dataset is there already
    monkeypatch.setattr(quickstart, "NUM_IMAGES", 4)
    quickstart.main(tiny)
    folder = tmp_path / "run"
    output = capsys.readouterr().out
    for name in ("detections.png", "loss_curves.png"):
        assert min(Image.open(folder / name).size) > 300
        assert str(folder / name) in output
    assert "AP50 " in output


@pytest.mark.parametrize(
    "tool",
    [
        *("tools/train_net.py", "tools/test_net.py", "tools/quickstart.py", "demo/atss_demo.py"),
        *("tools/remove_solver_states.py", "tools/check_dataset.py", "tools/assign.py"),
    ],
)
def test_help_fits_a_screen_and_shows_an_example(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / tool), "--help"])
    with pytest.raises(SystemExit) as stop:  # in this process, which has PyTorch loaded
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "example:" in output
    assert output.count("\n") < 40
