import shutil

import pytest
import torch
from torch import nn

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.download import cache_path
from atss_core.cli.common import run
from atss_core.cli.remove_solver_states import main


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run: weights, averaged weights, solver state and names."""
    model = nn.Linear(100, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 100)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 7}
    torch.save({**state, "class_names": ["cat", "dog"]}, tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def assert_weights(file, expected):
    written = read_checkpoint(file)
    assert written.keys() <= {"model", "class_names"}
    assert written["model"].keys() == expected.keys()
    assert all(torch.equal(written["model"][key], expected[key]) for key in expected)


@pytest.mark.parametrize("flags", [["--model"], []])
def test_weights_and_names_are_kept(checkpoint, flags, capsys):
    before = checkpoint.read_bytes()
    main([*flags, str(checkpoint)])
    output = checkpoint.with_name("model_final_wo_solver_states.pth")
    assert_weights(output, read_checkpoint(checkpoint)["model"])
    assert read_checkpoint(output)["class_names"] == ["cat", "dog"]
    assert output.stat().st_size < checkpoint.stat().st_size
    assert checkpoint.read_bytes() == before
    assert capsys.readouterr().out == f"{checkpoint}: 0.0 MB\n{output}: 0.0 MB\n"


def test_other_format_and_back(checkpoint, tmp_path):
    main([str(checkpoint), "--output", str(tmp_path / "small.safetensors")])
    main([str(tmp_path / "small.safetensors"), "--output", str(tmp_path / "back.pth")])
    for name in ("small.safetensors", "back.pth"):
        assert_weights(tmp_path / name, read_checkpoint(checkpoint)["model"])
        assert read_checkpoint(tmp_path / name)["class_names"] == ["cat", "dog"]


def test_suffix_is_kept_and_a_second_run_refused(checkpoint, tmp_path, capsys):
    main([str(checkpoint), "--output", str(tmp_path / "small.safetensors")])
    main([str(tmp_path / "small.safetensors")])
    output = tmp_path / "small_wo_solver_states.safetensors"
    assert output.read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    output.write_text("something else")
    with pytest.raises(ValueError, match=r"small_wo_solver_states.safetensors exists already; remove it"):
        main([str(tmp_path / "small.safetensors")])
    assert output.read_text() == "something else"


def test_url_is_taken_and_the_output_is_here(checkpoint, tmp_path, monkeypatch):
    url = "https://example.org/models/model_final.pth"
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    cache_path(url).parent.mkdir(parents=True)
    shutil.copy(checkpoint, cache_path(url))
    main([url])
    assert_weights(tmp_path / "model_final_wo_solver_states.pth", read_checkpoint(checkpoint)["model"])


def test_ema_weights_are_kept(checkpoint, tmp_path):
    averaged = nn.Linear(100, 30).state_dict()
    torch.save({**read_checkpoint(checkpoint), "ema": {"model": averaged, "num_updates": 7}}, checkpoint)
    main([str(checkpoint), "--output", str(tmp_path / "averaged.pth")])
    assert_weights(tmp_path / "averaged.pth", averaged)


def test_published_checkpoint_without_names(tmp_path):
    weights = nn.Linear(2, 3).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in weights.items()}, "optimizer": {}}, tmp_path / "a.pth")
    main([str(tmp_path / "a.pth")])
    assert_weights(tmp_path / "a_wo_solver_states.pth", weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{}", "--output", "{}"],
            "model_final.pth exists already; remove it, or choose another file with --out",
        ),
        (["nowhere.pth"], "error: no weights at nowhere.pth"),
        ([], "expected one checkpoint, as FILE or behind --model"),
        (["{}", "--model", "{}"], "expected one checkpoint, as FILE or behind --model"),
    ],
)
def test_mistakes_are_explained(checkpoint, arguments, message, capsys):
    before = checkpoint.read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(main, [argument.format(checkpoint) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
