"""The ``atss`` command: what chooses, helps and proposes; and its smaller commands."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from atss_core import __version__
from atss_core.cli import doctor, plot, train
from atss_core.cli.common import run
from atss_core.cli.main import COMMANDS, main
from atss_core.cli.parser import CommandParser
from atss_core.utils import extras
from atss_core.visualization import charts
from tests.conftest import QUICK
from tests.golden import ROOT


def message_of(capsys, function, *words):
    with pytest.raises(SystemExit) as stop:
        function(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_list_of_commands_comes_at_once(capsys):
    main([])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert shown.count("\n") < 24
    code = "import sys, atss_core.cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_fits_a_screen_and_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: atss {name} ")
    assert f"example:\n  atss {name}" in shown
    assert shown.count("\n") < 40


def test_unknown_words_get_the_nearest(capsys):
    assert "there is no command tran; did you mean train?" in message_of(capsys, main, ["tran"])
    wrong = ["train", "--confg-file", str(QUICK)]
    assert "there is no flag --confg-file; did you mean --config-file?" in message_of(capsys, main, wrong)
    missing = message_of(capsys, main, ["train"])
    assert "required: --config-file" in missing
    assert "atss train --help shows the flags" in missing


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"atss {__version__}\n"


def test_the_package_is_a_command_for_launchers():
    command = [sys.executable, "-m", "atss_core", "--version"]
    assert __version__ in subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_flags_stand_anywhere_and_values_may_be_negative():
    parser = CommandParser("atss x", "", "")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--number", type=float)
    parser.add_argument("opts", nargs="*")
    found = parser.parse_args(["A", "-1e-3", "--flag", "B", "(1, 2)", "--number", "-.5", "--", "C", "-3"])
    assert found.opts == ["A", "-1e-3", "B", "(1, 2)", "C", "-3"]
    assert found.flag
    assert found.number == -0.5


def test_a_command_that_does_not_load_sends_to_the_doctor(monkeypatch):
    monkeypatch.setitem(COMMANDS, "train", ("nowhere", ""))
    with pytest.raises(SystemExit, match=r"nowhere.*\natss doctor tells more"):
        main(["train"])


def test_the_doctor_tells_versions_and_remedies(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "has", lambda module: module != "onnx")
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path / "cache"))
    main(["doctor"])
    shown = capsys.readouterr().out
    assert f"atss {__version__}" in shown
    assert "operators: " in shown
    assert "no onnx: export to ONNX (pip install onnx)" in shown
    assert f"downloads: {tmp_path / 'cache'}" in shown


def test_the_doctor_finds_operators_that_do_not_run(capsys, monkeypatch):
    monkeypatch.setenv("ATSS_OPS", "nonsense")
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "! ValueError: ATSS_OPS must be compiled or torchvision" in shown
    assert "-> build them again" in shown


def test_the_doctor_tells_about_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: None if package == "pycocotools" else "1")
    (finding,) = [finding for finding in doctor.versions() if finding.is_fatal]
    assert finding == doctor.Finding("no pycocotools", "pip install pycocotools", is_fatal=True)


def test_missing_extras_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(extras, "has", lambda module: False)
    with pytest.raises(ValueError, match=r"faster COCO metrics needs faster-coco-eval, .* pip install"):
        extras.require("faster_coco_eval")


def write_run(folder, losses, tests=()):
    folder.mkdir(parents=True)
    lines = [
        {"iteration": i, "lr": 0.01, "loss": loss, "loss_cls": loss} for i, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if tests:
        lines = [{"iteration": i, "AP": ap, "AP50": ap} for i, ap in tests]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def colors_of(file):
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
    return {tuple(color) for color in np.unique(pixels, axis=0).tolist()}


def test_plot_draws_runs_side_by_side(tmp_path, capsys):
    write_run(tmp_path / "a" / "run", [3.0, 2.0, 1.0], tests=[(1, 0.1), (3, 0.3)])
    write_run(tmp_path / "b" / "run", [2.0, 1.0])
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    with open(tmp_path / "a" / "run" / "evaluations.jsonl", "a") as file:
        file.write('{"iteration": 4, "A')  # half a line of a killed run
    run(plot.main, [str(tmp_path / "a" / "run")])
    single = tmp_path / "a" / "run" / "curves.png"
    assert str(single) in capsys.readouterr().out
    assert blue in colors_of(single)
    assert orange not in colors_of(single)
    both = tmp_path / "both.png"
    run(plot.main, [str(tmp_path / "a/run"), str(tmp_path / "b/run/metrics.jsonl"), "--output", str(both)])
    assert {blue, orange} <= colors_of(both)
    assert Image.open(both).height < Image.open(single).height + 20  # the same panels


def test_plot_names_runs_by_what_tells_them_apart(tmp_path):
    files = [tmp_path / name / "metrics.jsonl" for name in ("a/run", "b/run")]
    assert list(plot.name_runs(files)) == ["a/run", "b/run"]
    assert list(plot.name_runs(files[:1])) == ["run"]


def test_plot_shows_names_of_runs_as_they_are(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    names = ["_hidden", "$x^2$", "\u00e9crou"]
    for name in names:
        write_run(tmp_path / name, [2.0, 1.0])
    plot.main([*(str(tmp_path / name) for name in names), "--output", str(tmp_path / "a.png")])
    texts = figures[0].legends[0].get_texts()
    assert [text.get_text() for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)


def test_plot_draws_over_no_metrics(tmp_path):
    write_run(tmp_path / "run", [2.0, 1.0])
    metrics = (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "a.png")
    before = metrics.read_bytes()
    with pytest.raises(ValueError, match=r"a.png would be overwritten: .* Give another --output"):
        plot.main([str(metrics), "--output", str(metrics)])
    assert metrics.read_bytes() == before


def test_plot_wants_a_run(tmp_path, capsys):
    assert "expected the OUTPUT_DIR of a training" in message_of(capsys, run, plot.main, [str(tmp_path)])


def test_training_ends_with_what_to_do_next_and_feeds_tensorboard(tiny, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.main(["--config-file", str(QUICK), "--skip-test", *tiny])
    folder = tmp_path / "run"
    shown = capsys.readouterr().out
    assert f"atss test --config-file {folder}/config.yml MODEL.WEIGHT {folder}/model_final.pth" in shown
    assert f"atss plot {folder}" in shown
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = {event.step: event.value for event in events.Scalars("training/loss")}
    assert written == pytest.approx({line["iteration"]: line["loss"] for line in lines}, rel=1e-6)
