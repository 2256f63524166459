"""Several processes, on the CPU."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.weights import weights_of
from atss_core.cli import evaluate
from atss_core.data import write_shapes
from tests.conftest import QUICK, TINY
from tests.engine.helpers import ALONE, command, free_port
from tests.golden import ROOT

STALLING = """
import os, sys, time
from datetime import timedelta
import torch
from atss_core.cli.common import run
from atss_core.utils import dist

def job(argv):
    dist.start_process_group(torch.device("cpu"))
    if (argv[0] == "evaluate") == dist.is_main():
        time.sleep(12)  # the main process evaluates, or the other stalls
    if argv[0] == "evaluate":
        dist.barrier()
    sys.stdout.write(f"sum {dist.sum_over_processes(torch.ones(1)).item()}\\n")  # in one piece

dist.TIMEOUT = timedelta(seconds=6)
os.environ["RANK"] = "1" if os.fork() else "0"
run(job, sys.argv[1:])
if os.environ["RANK"] == "1":
    os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("what", ["evaluate", "stall"])
def test_processes_wait_long_only_for_the_main_one(what):
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", STALLING, what],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if what == "evaluate":
        assert done.stdout.splitlines() == ["sum 2.0", "sum 2.0"], done.stderr
    else:
        assert done.stdout == ""
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "has not answered for 0:00:06" in errors[0]
        assert "Timed out waiting" in errors[0]
        assert "Traceback" not in done.stderr


DOORS = """
import atexit, os, sys
import torch
from torch import distributed, nn
from atss_core.cli.common import run
from atss_core.engine import TerminatedError
from atss_core.utils import dist

def job(error):
    dist.start_process_group(torch.device("cpu"))
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    pending = distributed.all_reduce(torch.ones(1), async_op=True)  # as the notice of SIGTERM may be
    raise error

def tell():
    # In one piece, and as late as an exit handler is called.
    os.write(1, f"{os.environ['DOOR']} left: {not distributed.is_initialized()}\\n".encode())

errors = {
    "user": ValueError("broken"), "fault": RuntimeError("broken"), "interrupt": KeyboardInterrupt(),
    "SIGTERM": TerminatedError("stopped"), "script": ValueError("broken"),
}
for number, (door, error) in enumerate(errors.items()):
    port = int(sys.argv[1 + number])
    os.environ |= {"DOOR": door, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for rank in "01":
        os.environ["RANK"] = rank
        if os.fork() == 0:
            atexit.register(tell)
            sys.exit(job(error) if door == "script" else run(job, error))
    for _ in "01":
        os.write(1, f"{door} {os.waitstatus_to_exitcode(os.wait()[1])}\\n".encode())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_process_leaves_the_job_by_whatever_error_it_ends():
    """Threads of gloo that outlive the interpreter end it with SIGABRT, which a shell reports as 134."""
    done = subprocess.run(
        [sys.executable, "-c", DOORS, *(str(free_port()) for _ in range(5))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    codes = {"user": 2, "fault": 1, "interrupt": 1, "SIGTERM": 128 + signal.SIGTERM, "script": 1}
    expected = [line for door, code in codes.items() for line in (f"{door} left: True", f"{door} {code}")]
    assert sorted(done.stdout.splitlines()) == sorted(2 * expected), done.stderr[-3000:]


def train(*arguments, **options):
    """Train and test; returns what was printed."""
    done = subprocess.run(
        command(*arguments, **options),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_shapes(folder / "shapes", num_train=12, num_val=7, image_sizes=((128, 128),), progress=False)
    return folder


# Processes and micro-batches that share the same batches of four images.
SPLITS = {"1x4": (1, 1), "2x2": (2, 1), "1x2x2": (1, 2), "2x1x2": (2, 2)}


@pytest.fixture(scope="module")
def runs(data):
    """The folders of runs on the same data, in one and two processes, with one and two micro-batches."""
    for name, (num_processes, num_micro_batches) in SPLITS.items():
        launcher = "launch" if name == "2x2" else "torchrun"
        more = [*ALONE, "SOLVER.GRAD_ACCUM_STEPS", str(num_micro_batches)]
        train(num_processes, data, data / name, more, launcher=launcher)
    return [data / name for name in SPLITS]


def test_saved_batch_norm_statistics_are_the_evaluated_ones(data, tmp_path):
    train(2, data, tmp_path)
    name = "inference/shapes_val/bbox.json"
    after_training = json.loads((tmp_path / name).read_text())
    opts = [*TINY, "DATASETS.DATA_DIR", str(data), "OUTPUT_DIR", str(tmp_path)]
    evaluate.main(["--config-file", str(QUICK), *opts])
    again = json.loads((tmp_path / name).read_text())
    assert len(again) == len(after_training) > 0
    for first, second in zip(again, after_training, strict=True):
        assert first["image_id"] == second["image_id"]
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)


@pytest.mark.parametrize("split", list(SPLITS)[1:])
def test_update_does_not_depend_on_processes_and_micro_batches(runs, split):
    folder = runs[0].parent
    first, second = (read_checkpoint(folder / name / "model_final.pth")["model"] for name in ("1x4", split))
    for key in first:
        assert torch.allclose(first[key], second[key], rtol=1e-5, atol=1e-6), key
    start = torch.full_like(first["rpn.head.cls_logits.bias"], first["rpn.head.cls_logits.bias"].mean())
    assert not torch.equal(first["rpn.head.cls_logits.bias"], start)


@pytest.mark.parametrize("split", list(SPLITS)[1:])
def test_losses_are_logged_for_the_whole_batch(runs, split):
    first, second = (
        [
            json.loads(line)["loss"]
            for line in (runs[0].parent / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("1x4", split)
    )
    assert first == pytest.approx(second, rel=1e-4)
    assert len(first) == 3


def test_two_processes_count_every_image_once(runs):
    first, second = (
        torch.load(f / "inference/shapes_val/predictions.pth", weights_only=True) for f in runs[:2]
    )
    assert sorted(first) == sorted(second)
    assert len(first) == 7
    detections, again = (json.loads((f / "inference/shapes_val/bbox.json").read_text()) for f in runs[:2])
    assert len(detections) == len(again) > 0


def test_periodic_evaluation_changes_nothing_and_chooses_the_best(data, tmp_path, runs):
    more = [*ALONE, "TEST.EVAL_PERIOD", "2", "SOLVER.EMA_DECAY", "0.9", "SOLVER.CLIP_GRAD_NORM", "1e9"]
    output = train(2, data, tmp_path, more)
    first, second = (read_checkpoint(f / "model_final.pth")["model"] for f in (runs[1], tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    best = read_checkpoint(tmp_path / "model_best.pth")
    assert best["best"] == max(line["AP"] for line in lines)
    assert best["iteration"] == next(line["iteration"] for line in lines if line["AP"] == best["best"])
    assert output.count("star") == 3, "the final model is not evaluated twice"


def test_ema_weights_are_evaluated(data, tmp_path):
    more = [*ALONE, "SOLVER.EMA_DECAY", "0.5", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "3"]
    train(1, data, tmp_path, more)
    states = [read_checkpoint(tmp_path / f"model_{i:07d}.pth") for i in (1, 2)]
    states.append(read_checkpoint(tmp_path / "model_final.pth"))
    key = "rpn.head.cls_logits.bias"
    expected = states[0]["model"][key]
    for state in states[1:]:
        expected = 0.5 * expected + 0.5 * state["model"][key]
    average = states[-1]["ema"]["model"]
    assert torch.allclose(average[key], expected, atol=1e-7)
    assert not torch.equal(average[key], states[-1]["model"][key])
    assert weights_of(states[-1]) is average


def test_processes_with_different_folders_are_refused(data, tmp_path):
    """As on two machines that do not share OUTPUT_DIR: only one finds the checkpoint."""
    train(1, data, tmp_path / "run", [*ALONE, "SOLVER.MAX_ITER", "2"])
    script = tmp_path / "apart.py"
    script.write_text(
        "import os, sys\n"
        "from atss_core.cli import common, train\n"
        "folder = sys.argv.index('OUTPUT_DIR') + 1\n"
        "sys.argv[folder] += '' if os.environ['RANK'] == '0' else '_of_another_machine'\n"
        "common.run(train.main)\n"
    )
    arguments = command(2, data, tmp_path / "run", ALONE)
    arguments[arguments.index(str(ROOT / "tools" / "train_net.py"))] = str(script)
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode != 0
    assert "OUTPUT_DIR must be a folder that all machines share" in done.stderr
