"""The training loop with stand-ins for step, checkpoints and evaluation."""

import json
import os
import subprocess
import sys
import time

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from atss_core.engine.train import train
from atss_core.engine.training_log import TrainingLog
from tests.golden import ROOT


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def takes(self, seconds, result=None):
        def work(*arguments):
            self.now += seconds
            return result

        return work


class StandIn:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def run(folder, monkeypatch, start_iter=0):
    """Train to iteration 10, 1 s each; a checkpoint takes 100 s, an evaluation 1000 s. Returns the lines."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), 0.1)

    class Step(StandIn):
        def __call__(self, micro_batches):
            return clock.takes(1.0, {"loss_cls": torch.tensor(1.0)})()

    class Evaluation(StandIn):
        is_due = staticmethod(lambda iteration: iteration % 5 == 0)
        __call__ = staticmethod(clock.takes(1000.0))

    batch = StandIn(image_ids=[1], skipped=[], to=lambda *arguments, **options: None)
    cpu = torch.device("cpu")
    scheduler = LambdaLR(optimizer, lambda iteration: 1.0)
    train(
        Step(model=model, optimizer=optimizer, device=cpu),
        [batch] * (10 - start_iter),
        StandIn(save=clock.takes(100.0), scheduler=scheduler),
        TrainingLog(folder, start_iter=start_iter, max_iter=10, period=4, device=cpu),
        checkpoint_period=3,
        evaluation=Evaluation(),
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_times_and_the_estimated_end_are_those_of_iterations_alone(tmp_path, monkeypatch):
    lines = run(tmp_path, monkeypatch)
    assert [line["iteration"] for line in lines] == [3, 4, 5, 6, 8, 9, 10]
    assert [line["time"] for line in lines] == [1.0] * 7
    assert [line["eta_seconds"] for line in lines] == [10 - line["iteration"] for line in lines]
    assert [line["data"] for line in lines] == [0.0] * 7


def test_lines_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = run(tmp_path, monkeypatch)
    resumed = run(tmp_path, monkeypatch, start_iter=5)  # with the evaluation that is due at its start
    times = {"wall_time", "max_memory_mib"}
    assert [{k: v for k, v in line.items() if k not in times} for line in resumed] == [
        {k: v for k, v in line.items() if k not in times} for line in whole
    ]


SCRIPT = """
import sys
import torch
from atss_core.engine.training_log import NonFiniteLossError, TrainingLog
from atss_core.utils import dist
from pathlib import Path

dist.start_process_group(torch.device("cpu"))
ids = [[2**40, 7], [8]][dist.rank()]
for losses in sys.argv[2:]:
    folder = Path(sys.argv[1])
    log = TrainingLog(folder, start_iter=0, max_iter=9, period=9, device=torch.device("cpu"))
    try:
        log.add(1, {"loss_cls": torch.tensor(float(losses.split(",")[dist.rank()]))}, ids)
    except NonFiniteLossError as error:
        with open(folder / f"{losses}.{dist.rank()}", "w") as file:
            file.write(str(error))
dist.barrier()
dist.stop_process_group()
"""


def test_the_images_of_the_process_whose_loss_is_not_finite_are_named(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # The losses of two processes, and the images to look at.
    cases = {"1,nan": [8], "inf,1": [2**40, 7], "3e38,3e38": [2**40, 7, 8]}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path), *cases],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for losses, images in cases.items():
        messages = [(tmp_path / f"{losses}.{rank}").read_text() for rank in (0, 1)]
        named = [message.split("; ")[1].split(". Nothing")[0] for message in messages]
        assert sorted(named) == [f"images {images}", "the main process names the images"]
