import math

import pytest

from atss_core.engine.training_log import Board

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def curves(folder):
    """The numbers that TensorBoard shows, by name and step."""
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    first = Board(tmp_path, 0)
    for iteration in range(1, 5):
        first.add(iteration, "training", {"loss": float(iteration), "lr": None})
    # As of another process, a second later: the files are read in the order of their names.
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / f"events.out.tfevents.0000000001.{file.name.rsplit('.', 2)[1]}.1")
    Board(tmp_path, 2).add(3, "training", {"loss": 30.0, "AP": math.nan})
    shown = curves(tmp_path)
    assert shown["training/loss"] == {1: 1.0, 2: 2.0, 3: 30.0}
    assert shown.keys() == {"training/loss", "training/AP"}
    assert math.isnan(shown["training/AP"][3])


def test_failing_import_is_a_warning(tmp_path, monkeypatch, caplog):
    def broken(name):
        raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setattr("atss_core.engine.training_log.importlib.import_module", broken)
    Board(tmp_path, 0).add(1, "training", {"loss": 1.0})
    (record,) = caplog.records
    assert "TensorBoard cannot be imported and gets no curves: TypeError('Descriptors" in record.message
    assert not list(tmp_path.iterdir())
