"""Runs that are killed, terminated or cannot save end with the weights of an undisturbed run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import train as train_command
from atss_core.data import write_shapes
from tests.conftest import QUICK
from tests.engine.helpers import ALONE, command

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="looks for processes in /proc, as Linux has it"
)

NUM_ITERS = 40
LONGER = [
    *(*ALONE, "SOLVER.MAX_ITER", str(NUM_ITERS), "SOLVER.CHECKPOINT_PERIOD", "10", "SOLVER.LOG_PERIOD", "5"),
    *("DATALOADER.NUM_WORKERS", "1"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interruptions")
    write_shapes(folder / "shapes", num_train=12, num_val=4, image_sizes=((128, 128),), progress=False)
    return folder


def arguments_of(num_processes, data, folder, *launcher_options, more=()):
    """The command of a run without the final test."""
    arguments = command(num_processes, data, folder, [*LONGER, *more])
    tool = next(i for i, each in enumerate(arguments) if each.endswith("train_net.py"))
    return [*arguments[:tool], *launcher_options, arguments[tool], "--skip-test", *arguments[tool + 1 :]]


def begin(*arguments, **options):
    """Start a run as the leader of its own process group."""
    return subprocess.Popen(
        arguments_of(*arguments, **options),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(num_processes, *arguments, **options):
    """Run the command to its end; a single process is this one, which has PyTorch loaded."""
    command = arguments_of(num_processes, *arguments, **options)
    if num_processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with redirect_stdout(StringIO()) as printed:
            train_command.main(command[command.index("--skip-test") :])
        torch.set_num_threads(threads)
        return printed.getvalue()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def wait_for(path):
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def children(pid):
    """The child processes of a process: workers of a launcher, or data workers of these."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def final_weights(folder):
    return read_checkpoint(folder / "model_final.pth")["model"]


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]


@pytest.fixture(scope="module")
def undisturbed(data):
    """The final weights of undisturbed runs, by number of processes."""
    for num_processes in (1, 2):
        finish(num_processes, data, data / str(num_processes))
    return {n: final_weights(data / str(n)) for n in (1, 2)}


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_killed_worker(max_restarts, data, undisturbed, tmp_path):
    """Without restarts the job ends with an error and the command goes on; with them it does so by itself."""
    folder = tmp_path / "run"
    job = begin(2, data, folder, f"--max-restarts={max_restarts}")
    wait_for(folder / "model_0000010.pth")
    os.kill(children(job.pid)[-1], signal.SIGKILL)
    output, _ = job.communicate(timeout=600)
    if max_restarts:
        assert job.returncode == 0, output[-3000:]
        assert "Resuming from" in output
    else:
        assert job.returncode != 0
        assert "Signal 9 (SIGKILL)" in output
        assert "error: another process of the job has ended" in output
        assert not (folder / "model_final.pth").exists()
        assert "Resuming from" in finish(2, data, folder)
    assert_same_weights(final_weights(folder), undisturbed[2])


@pytest.mark.parametrize("more", [(), ("TEST.EVAL_PERIOD", "1")])
def test_killed_data_worker_ends_in_one_line(more, data, tmp_path):
    job = begin(1, data, tmp_path / "run", more=("SOLVER.MAX_ITER", "4000", *more))
    wait_for(tmp_path / "run" / "model_0000010.pth")
    killed = children(job.pid)[-1]
    os.kill(killed, signal.SIGKILL)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"DataLoader worker (pid {killed})" in line
    assert "signal 9 (Killed)" in line
    assert "lower DATALOADER.NUM_WORKERS" in line
    assert "Traceback" not in output


@pytest.mark.parametrize("num_processes", [1, 2])
def test_terminated_job_saves_and_goes_on(num_processes, data, undisturbed, tmp_path):
    """The whole group gets the signal, data workers as well, as from a cluster that takes a node back."""
    folder = tmp_path / "run"
    job = begin(num_processes, data, folder)
    wait_for(folder / "model_0000010.pth")
    os.killpg(job.pid, signal.SIGTERM)
    output, _ = job.communicate(timeout=600)
    assert job.returncode not in (0, None)
    (stopped,) = re.findall(r"stopped by SIGTERM after iteration (\d+)", output)
    assert "DataLoader worker" not in output
    if num_processes == 1:
        assert job.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in output
    saved = folder / f"model_{int(stopped):07d}.pth"
    assert (folder / "last_checkpoint").read_text() == saved.name
    assert read_checkpoint(saved)["iteration"] == int(stopped) < NUM_ITERS
    assert f"Resuming from {saved}" in finish(num_processes, data, folder)
    assert_same_weights(final_weights(folder), undisturbed[num_processes])


EVALUATED = ["TEST.EVAL_PERIOD", "10", "SOLVER.EMA_DECAY", "0.9"]


@pytest.fixture(scope="module")
def whole(data):
    """The folder of an undisturbed run with periodic evaluation."""
    finish(1, data, data / "whole", more=EVALUATED)
    return data / "whole"


def test_closed_terminal(data, undisturbed, tmp_path):
    job = begin(1, data, tmp_path / "run")
    wait_for(tmp_path / "run" / "model_0000010.pth")
    os.killpg(job.pid, signal.SIGHUP)  # to all processes of the terminal, data workers as well
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert_same_weights(final_weights(tmp_path / "run"), undisturbed[1])


def test_workers_end_with_their_killed_launcher(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = begin(2, data, folder)
    wait_for(folder / "model_0000010.pth")
    job.kill()
    output, _ = job.communicate(timeout=600)  # until all workers have ended, who write to the same pipe
    assert "stopped by SIGTERM after iteration" in output
    assert not (folder / "model_final.pth").exists()
    assert "Resuming from" in finish(2, data, folder)
    assert_same_weights(final_weights(folder), undisturbed[2])


@pytest.mark.parametrize("moment", ["model_0000010.pth", "inference/shapes_val/bbox.json"])
def test_terminated_evaluation_ends_as_undisturbed(moment, data, whole, tmp_path):
    """Right before the first evaluation of a run, or during one; the resumed run repeats it."""
    stopped = tmp_path / "stopped"
    job = begin(1, data, stopped, more=EVALUATED)
    wait_for(stopped / moment)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 128 + signal.SIGTERM, output
    finish(1, data, stopped, more=EVALUATED)
    assert_same_weights(final_weights(stopped), final_weights(whole))
    lines = [
        [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for folder in (whole, stopped)
    ]
    assert lines[0] == lines[1]
    assert [line["iteration"] for line in lines[0]] == [10, 20, 30, 40]
    best = [read_checkpoint(folder / "model_best.pth") for folder in (whole, stopped)]
    assert best[0]["iteration"] == best[1]["iteration"]
    assert_same_weights(best[0]["model"], best[1]["model"])


def can_mount():
    """Tell whether this user may mount a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    return tried.returncode == 0


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.mark.skipif(not can_mount(), reason="needs permission to mount a small tmpfs (user namespaces)")
def test_full_disk_leaves_the_previous_checkpoint(data, undisturbed, tmp_path):
    size = (data / "1" / "model_final.pth").stat().st_size * 3 // 2  # for one checkpoint, but not for two
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "disk" / "run"
    script = f'mount -t tmpfs -o size={size} tmpfs disk && "$@"; code=$?; cp -a disk/run copy; exit $code'
    done = subprocess.run(
        [*NAMESPACE, script, "sh", *arguments_of(1, data, folder)],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "model_0000020.pth (No space left on device)" in message
    assert "Traceback" not in done.stderr
    copy = tmp_path / "copy"
    assert (copy / "last_checkpoint").read_text() == "model_0000010.pth"
    assert [path.name for path in copy.glob("*.pth")] == ["model_0000010.pth"]
    assert not list(copy.glob(".*.tmp"))
    finish(1, data, copy)
    assert_same_weights(final_weights(copy), undisturbed[1])


@pytest.mark.parametrize("name", ["model_0000030.pth", "model_final.pth"])
def test_damaged_checkpoint_is_skipped(name, data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(data / "1", folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "last_checkpoint").write_text(name)
    before = f"model_{20 if '30' in name else 30:07d}.pth"
    output = finish(1, data, folder)
    assert f"{name} cannot be read as a checkpoint" in output
    assert f"Resuming from {folder / before}" in output
    assert_same_weights(final_weights(folder), undisturbed[1])


def test_folder_with_damaged_checkpoints_alone_is_an_error(data, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000010.pth")
    (tmp_path / "model_0000010.pth").write_bytes(b"PK")
    opts = arguments_of(1, data, tmp_path)
    with pytest.raises(ValueError, match=r"no other checkpoint of .* can be read"):
        train_command.main(opts[opts.index("--skip-test") :])
    assert str(QUICK) in opts
