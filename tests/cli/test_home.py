"""A ``~`` that the shell leaves in a path, as in --output-dir=~/x, is the home folder for every command."""

import re

import pytest
import torch
import yaml
from yacs.config import CfgNode

from atss_core.checkpoint.download import cache_root
from atss_core.cli import assign, check, demo, export, plot, remove_solver_states, train
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.engine import evaluate_detector, train_detector
from tests.conftest import QUICK, TINY


@pytest.fixture
def home(monkeypatch, tmp_path, shapes):
    """A home folder with the dataset "shapes" in ``~/data``; the working folder is another one."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "data").symlink_to(shapes)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    yield folder
    assert not list((tmp_path / "work").iterdir()), "nothing is written to the working folder"


def test_training_and_what_it_proposes(home, capsys):
    opts = [*TINY, "DATASETS.DATA_DIR", "~/data", "OUTPUT_DIR", "~/runs", "SOLVER.MAX_ITER", "2"]
    train.main(["--config-file", str(QUICK), "--skip-test", *opts])
    assert (home / "runs" / "model_final.pth").is_file()
    proposed = re.findall(r"--config-file (\S+) .*?(\S+\.pth)", capsys.readouterr().out)
    assert set(proposed) == {(f"{home}/runs/config.yml", f"{home}/runs/model_final.pth")}
    cfg = load_cfg("~/runs/config.yml")
    assert (f"{home}/runs", f"{home}/data") == (cfg.OUTPUT_DIR, cfg.DATASETS.DATA_DIR)
    run(plot.main, ["~/runs", "--output=~/curves.png"])
    run(plot.main, ["~/runs"])
    assert (home / "curves.png").is_file()
    assert (home / "runs" / "curves.png").is_file()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_training_and_test_of_a_plain_node(home, is_frozen):
    """As a program of the published implementation has it: of yacs, with paths that nobody has expanded."""
    cfg = CfgNode(yaml.safe_load(load_cfg(QUICK, [*TINY, "SOLVER.MAX_ITER", "2"]).dump()))
    cfg.OUTPUT_DIR, cfg.DATASETS.DATA_DIR = "~/runs", "~/data"
    if is_frozen:
        cfg.freeze()
    metrics = train_detector(cfg)
    assert (home / "runs" / "model_final.pth").is_file()
    assert (home / "runs" / "inference" / "shapes_val" / "metrics.json").is_file()
    assert metrics.keys() == {"shapes_val"}
    assert evaluate_detector(cfg)["shapes_val"].overall == metrics["shapes_val"].overall


@pytest.mark.parametrize("command", [check, assign])
def test_datasets(home, command):
    path = "~/data/shapes/annotations/val.json@~/data/shapes/val"
    flags = ["--quick"] if command is check else ["--num-images", "1", "--num-drawn", "0"]
    run(command.main, [path, f"--config-file={QUICK}", "--output-dir=~/report", *flags, *TINY])
    assert (home / "report" / "annotations_val" / "report.json").is_file()


def test_checkpoints(home):
    torch.save({"model": {"weight": torch.zeros(2)}}, home / "a.pth")
    run(remove_solver_states.main, ["--model=~/a.pth", "--output=~/b.pth"])
    run(remove_solver_states.main, ["~/a.pth"])
    assert (home / "b.pth").is_file()
    assert (home / "a_wo_solver_states.pth").is_file()


def test_demo_and_export(home, capsys, monkeypatch):
    assert demo.build_parser().parse_args(["--output-dir=~/drawn"]).output_dir == home / "drawn"
    with pytest.raises(SystemExit):
        run(export.main, [f"--config-file={QUICK}", "--output=~/file.bin"])
    assert f"got {home}/file.bin" in capsys.readouterr().err
    (home / "empty").mkdir()
    for command, flags in (
        (export, ["--images=~/empty"]),
        (demo, ["--weights=~/a.pth", "--images-dir=~/empty"]),
    ):
        (home / "a.pth").touch()
        with pytest.raises(SystemExit):
            run(command.main, [f"--config-file={QUICK}", *flags])
        assert f"{home}/empty" in capsys.readouterr().err
    monkeypatch.setenv("ATSS_CACHE", "~/cache")
    assert cache_root() == home / "cache"
