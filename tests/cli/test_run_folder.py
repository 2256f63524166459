"""Files of a run folder: unchanged by a refused start, written by one run at a time."""

import json
import shutil
from functools import partial

import pytest
import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import evaluate as evaluate_command
from atss_core.cli import train as train_command
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.engine import build
from atss_core.engine.evaluate import Evaluation
from atss_core.engine.lock import lock_folder
from atss_core.engine.training_log import TrainingLog
from atss_core.evaluation import CocoMetrics
from atss_core.utils.extras import has
from tests.conftest import QUICK

EVALUATED = ["TEST.EVAL_PERIOD", "2", "TEST.REPORT", "False"]


def train(opts):
    train_command.main(["--config-file", str(QUICK), *opts])


def content(folder):
    """The files of a run by name, but for the logs, which grow."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("log.txt")
    }


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL.ATSS.NUM_CONVS", "2"], "does not fit the model"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.GRAD_ACCUM_STEPS", "2"], "must be a positive multiple"),
    ],
)
def test_a_refused_start_changes_nothing(more, message, tiny, tmp_path):
    train([*tiny, *EVALUATED])
    folder = tmp_path / "run"
    # As of a run that was killed after its last checkpoint.
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"iteration": 7, "AP": 1.0, "loss": 1.0}\n')
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        train([*tiny, *EVALUATED, "SOLVER.MAX_ITER", "8", *more])
    assert content(folder) == before
    train([*tiny, *EVALUATED, "SOLVER.MAX_ITER", "8"])
    assert load_cfg(folder / "config.yml").SOLVER.MAX_ITER == 8
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert [line["iteration"] for line in records(folder / name)] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state, (2, 0.5)),
        (lambda state: state | {"best_metric": {"AP50": 0.9}}, (6, 0.3)),  # TEST.BEST_METRIC was another
        (lambda state: {k: v for k, v in state.items() if k != "best_metric"}, (6, 0.3)),  # of before
    ],
)
def test_the_best_checkpoint_outlives_the_file_of_evaluations(change, expected, tiny, tmp_path, monkeypatch):
    values = iter([0.5, 0.2, 0.2, 0.3])  # after iterations 2 and 4; again after 4, and 6
    monkeypatch.setattr(Evaluation, "run", lambda *a, **k: {"val": CocoMetrics({"AP": next(values)})})
    train([*tiny, *EVALUATED, "SOLVER.MAX_ITER", "4"])
    folder = tmp_path / "run"
    (folder / "evaluations.jsonl").unlink()
    torch.save(change(torch.load(folder / "model_final.pth")), folder / "model_final.pth")
    train([*tiny, *EVALUATED])
    best = read_checkpoint(folder / "model_best.pth")
    assert (best["iteration"], best["best"]) == expected


def test_a_finished_run_keeps_its_configuration(tiny, tmp_path):
    train([*tiny, "--skip-test"])
    file = tmp_path / "run" / "config.yml"
    before = file.read_bytes()
    train([*tiny, "--skip-test", "SOLVER.BASE_LR", "0.5"])
    assert file.read_bytes() == before
    file.unlink()
    train([*tiny, "--skip-test"])
    assert file.read_bytes() == before


def test_a_second_run_in_the_folder_is_refused_and_an_evaluation_is_not(tiny, tmp_path, monkeypatch):
    train(tiny)
    folder = tmp_path / "run"
    before, log = content(folder), (folder / "log.txt").read_text()
    monkeypatch.setattr(build, "lock_folder", partial(lock_folder, patience=0))
    with lock_folder(folder):
        with pytest.raises(SystemExit):
            run(train_command.main, ["--config-file", str(QUICK), *tiny])
        assert (folder / "log.txt").read_text() == log, "it is that of the other run"
        with pytest.raises(ValueError, match="expected a folder that no other run writes to, but process"):
            train([*tiny, "SOLVER.MAX_ITER", "8"])
        evaluate_command.main(["--config-file", str(QUICK), *tiny])
    results = folder / "inference" / "shapes_val"
    assert content(folder).keys() == before.keys()
    assert (results / "bbox.json").read_bytes() == before["inference/shapes_val/bbox.json"]


def test_the_final_report_has_the_number_of_classes_of_the_data(tiny, tmp_path):
    train(tiny)
    report = (tmp_path / "run" / "inference" / "shapes_val" / "report.html").read_text()
    number = load_cfg(tmp_path / "run" / "config.yml").MODEL.ATSS.NUM_CLASSES
    assert number != 81
    assert f"NUM_CLASSES: {number}\n" in report


def test_auxiliary_files_that_cannot_be_written_are_warned_about_once(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        (folder / name).symlink_to("/dev/full")
    for name in ("tensorboard", "inference"):
        (folder / name).write_text("no folder")
    (folder / "log.txt").mkdir()
    train([*tiny, "TEST.EVAL_PERIOD", "2"])
    output = capsys.readouterr().out
    assert output.count(f"{folder / 'log.txt'} cannot be written to (Is a directory); the run goes on") == 1
    lines = [line for line in output.splitlines() if line.endswith("goes on without it")]
    warned = [line.split(" WARNING: ")[1].split(": cannot be written (")[0] for line in lines]
    reasons = {line.rsplit(" (", 1)[1] for line in lines}
    events = [name for name in warned if "tfevents" in name]
    names = ["metrics.jsonl", "evaluations.jsonl"]
    results = ["predictions.pth", "bbox.json", "metrics.json", "report.html"]
    expected = [str(folder / name) for name in names]
    expected += [str(folder / "inference" / "shapes_val" / name) for name in results]
    assert sorted(warned) == sorted([*expected, *events])
    assert len(events) == (1 if has("tensorboard") else 0)
    assert {reason.split(")")[0] for reason in reasons} <= {
        *("No space left on device", "Not a directory", "File exists")
    }
    for name in ("config.yml", "model_0000002.pth", "model_best.pth", "model_final.pth"):
        assert (folder / name).is_file()


def test_training_goes_on_after_its_folder_is_deleted(tiny, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    write = TrainingLog.write

    def delete_and_write(log, iteration, lr):
        if iteration == 2:
            shutil.rmtree(folder)
        write(log, iteration, lr)

    monkeypatch.setattr(TrainingLog, "write", delete_and_write)
    train([*tiny, "--skip-test"])
    output = capsys.readouterr().out
    for name in ("metrics.jsonl", *(["tfevents"] if has("tensorboard") else [])):
        (line,) = [line for line in output.splitlines() if name in line and "goes on without it" in line]
        assert "(No such file or directory)" in line
    assert [line["iteration"] for line in records(folder / "metrics.jsonl")] == [4, 6]  # after the checkpoint
    assert "iter 6/6" in (folder / "log.txt").read_text()
    assert (folder / "model_final.pth").is_file()


def test_an_evaluation_whose_results_cannot_be_written_is_an_error(tiny, tmp_path):
    train([*tiny, "--skip-test"])
    (tmp_path / "run" / "inference").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot write .*shapes_val/predictions.pth"):
        evaluate_command.main(["--config-file", str(QUICK), *tiny])


def test_leftovers_of_a_killed_evaluation_are_removed_by_the_next(tiny, tmp_path):
    train([*tiny, "--skip-test"])
    results = tmp_path / "run" / "inference" / "shapes_val"
    results.mkdir(parents=True)
    (results / ".bbox.json.another-host.123.0123abcd.tmp").write_text("[")
    (results / "notes.tmp").write_text("mine")
    evaluate_command.main(["--config-file", str(QUICK), *tiny])
    assert sorted(path.name for path in results.iterdir()) == [
        *("bbox.json", "metrics.json", "notes.tmp", "predictions.pth", "report.html")
    ]
