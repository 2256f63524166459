import json

import pytest
import torch

from atss_core.engine import training_log
from atss_core.engine.training_log import NonFiniteLossError, TrainingLog

CPU = torch.device("cpu")


def losses(value=1.0):
    return {"loss_cls": torch.tensor(value), "loss_reg": torch.tensor(0.5)}


def make(folder, start_iter=0):
    return TrainingLog(folder, start_iter=start_iter, max_iter=50, period=10, device=CPU)


def run(log, iterations):
    for iteration in iterations:
        log.add(iteration, losses(float(iteration)), [iteration])
        log.add_data_seconds(0.01)
        if log.is_due(iteration):
            log.write(iteration, lr=0.01)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_means_since_the_last_one(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 3.0])  # seconds at the start and at each line
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: next(clock))
    run(make(tmp_path), range(1, 26))
    written = lines(tmp_path)
    assert [line["iteration"] for line in written] == [10, 20]
    assert written[1]["loss_cls"] == pytest.approx(15.5)
    assert written[1]["loss"] == pytest.approx(16.0)
    assert [line["time"] for line in written] == pytest.approx([0.1, 0.2])
    assert written[1]["data"] == pytest.approx(0.01)
    assert written[1]["eta_seconds"] == pytest.approx(30 * 0.15)
    assert written[1]["lr"] == 0.01


def test_last_iteration_is_always_written(tmp_path):
    log = TrainingLog(tmp_path, start_iter=0, max_iter=7, period=5, device=CPU)
    run(log, range(1, 8))
    assert [line["iteration"] for line in lines(tmp_path)] == [5, 7]


def test_resuming_drops_what_comes_after_the_checkpoint(tmp_path):
    run(make(tmp_path), range(1, 31))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 40, "lo')
    run(make(tmp_path, start_iter=20), range(21, 41))
    assert [line["iteration"] for line in lines(tmp_path)] == [10, 20, 30, 40]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_names_iteration_terms_and_images(tmp_path, value):
    log = make(tmp_path)
    log.add(3, losses(), [11, 12])
    with pytest.raises(
        NonFiniteLossError, match=r"at iteration 4: loss_cls (nan|inf), loss_reg 0.5; images \[7, 8\]"
    ):
        log.add(4, losses(value), [7, 8])


def test_on_other_devices_the_first_bad_iteration_is_found_later(tmp_path):
    log = TrainingLog(tmp_path, start_iter=0, max_iter=9, period=9, device=torch.device("meta"))
    for iteration in range(1, 5):
        log.add(iteration, losses(float("nan") if iteration >= 3 else 1.0), [iteration])
    with pytest.raises(NonFiniteLossError, match=r"at iteration 3: .*images \[3\]"):
        log.check()
