"""Do killed runs and full disks cost anything but time?

    python benchmarks/faults.py [--kills 40] [--disks 10] [--seed 0]

Trains a small detector on made-up data, in one process and in two under torchrun. Each trial kills one
process (the command or launcher, a training process, a data worker) at a random moment, or trains on a disk
that is full after a random number of bytes; then the same command runs to its end. A trial holds if

- the final weights have the bits of an undisturbed run,
- no process is left a minute after the kill, and no temporary file after the second run,
- what was lost is at most one checkpoint period,
- a full disk ends the run in one line that names a file, with the last checkpoint whole.

Linux; the disks need permission to mount a tmpfs (root, or user namespaces).
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.data import write_shapes

ROOT = Path(__file__).resolve().parent.parent
NUM_ITERS, PERIOD = 40, 10
LONGEST_WAIT = 60
SETTINGS = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64", "MODEL.ATSS.NUM_CONVS", "1", "SOLVER.STEPS", "(30,)"),
    *("MODEL.RESNETS.TRANS_FUNC", "BasicBlockWithFixedBatchNorm", "SOLVER.BASE_LR", "0.01"),
    *("MODEL.RESNETS.STEM_FUNC", "StemWithFixedBatchNorm", "SOLVER.WARMUP_ITERS", "2"),
    *("INPUT.MIN_SIZE_RANGE_TRAIN", "(48, 64)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "4"),
    *("SOLVER.MAX_ITER", str(NUM_ITERS), "SOLVER.CHECKPOINT_PERIOD", str(PERIOD), "SOLVER.LOG_PERIOD", "5"),
    *("DATALOADER.NUM_WORKERS", "1"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def command(num_processes, data, folder):
    """The words of a training without a final evaluation."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    return [
        *(sys.executable, *(launcher if num_processes > 1 else ())),
        *(str(ROOT / "tools" / "train_net.py"), "--skip-test", "--config-file"),
        str(ROOT / "configs" / "quick" / "atss_R_18_shapes.yaml"),
        *(*SETTINGS, "DATASETS.DATA_DIR", str(data), "OUTPUT_DIR", str(folder)),
    ]


def finish(num_processes, data, folder):
    """Run the command to its end; returns the seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        command(num_processes, data, folder), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the run does not end well: {done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def processes_of(folder):
    """The processes whose command line or environment names a folder, with their parents."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(str(folder)) in words and state != "Z":
            found[int(entry.name)] = parent
    return found


def choose_victim(job, folder, rng):
    """Return a process of the job and its role; the deepest are data workers."""
    parents = processes_of(folder)
    depths = {}
    for pid in parents:
        depth, at = 0, pid
        while at in parents and at != job.pid:
            depth, at = depth + 1, parents[at]
        depths[pid] = depth
    depth = rng.choice(sorted(set(depths.values()) or {0}))
    pid = rng.choice([pid for pid, found in depths.items() if found == depth] or [job.pid])
    return pid, depth


def iteration_of(folder):
    """The last iteration in the metrics of a run, and of its last checkpoint."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    iterations = [int(i) for line in lines for i in re.findall(r'"iteration": (\d+)', line)]
    return max(iterations, default=0)


def first_iteration(output):
    """Where a run went on: the iteration of the checkpoint that it resumed from."""
    found = re.search(r"Resuming from .*model_(\d+|final)\.pth", output)
    return 0 if found is None else NUM_ITERS if found[1] == "final" else int(found[1])


def same_weights(folder, reference):
    """Tell whether the final weights have the same bits."""
    weights = read_checkpoint(folder / "model_final.pth")["model"]
    return weights.keys() == reference.keys() and all(torch.equal(weights[k], reference[k]) for k in weights)


def kill_once(num_processes, data, folder, reference, duration, rng):
    """Kill a process of a run at a random moment and let the run go on; returns role, faults and figures."""
    job = subprocess.Popen(
        command(num_processes, data, folder),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # From the start of the process on, but mostly while it trains.
    time.sleep(duration * rng.uniform(0.1, 1.0))
    pid, depth = choose_victim(job, folder, rng)
    role = (
        ["launcher", "training process", "data worker"] if num_processes > 1 else ["command", "data worker"]
    )[min(depth, 2 if num_processes > 1 else 1)]
    killed = time.monotonic()
    if job.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # a data worker at its end
            os.kill(pid, signal.SIGKILL)
    else:
        role = "none (had ended)"
    faults = []
    try:
        job.communicate(timeout=LONGEST_WAIT)
    except subprocess.TimeoutExpired:
        faults.append("hangs")
    while (left := processes_of(folder)) and time.monotonic() < killed + LONGEST_WAIT:
        time.sleep(0.2)
    waited = time.monotonic() - killed
    if left:
        faults.append(f"{len(left)} processes left")
        for each in left:
            os.kill(each, signal.SIGKILL)
    reached = iteration_of(folder)
    _, output = finish(num_processes, data, folder)
    lost = max(reached - first_iteration(output), 0)
    if lost > PERIOD:
        faults.append(f"lost {lost} iterations")
    faults += faults_at_end(folder, reference)
    return role, faults, waited, lost


def faults_at_end(folder, reference):
    """What is wrong with the folder of a run that went on to its end."""
    faults = []
    if not same_weights(folder, reference):
        faults.append("other weights")
    if left := [path.name for path in folder.rglob("*.tmp")]:
        faults.append(f"left {left}")
    iterations = [
        json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    if iterations != sorted(set(iterations)) or iterations[-1] != NUM_ITERS:
        faults.append(f"metrics of iterations {iterations}")
    return faults


def fill_once(data, folder, reference, num_bytes):
    """Train on a disk of some bytes, then with room; returns the faults and whether the disk was full."""
    folder.mkdir()
    disk, copy = folder / "disk", folder / "run"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={num_bytes} tmpfs {disk}"
    script = f'{mount} && "$@"; code=$?; cp -a {disk}/run {copy}; exit $code'
    done = subprocess.run(
        [*NAMESPACE, script, "sh", *command(1, data, disk / "run")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    faults = []
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or str(disk) not in errors[0] or "Traceback" in done.stderr:
            faults.append(f"ends with {done.stderr[-300:]!r}")
        if left := [path.name for path in copy.rglob("*.tmp")]:
            faults.append(f"left {left}")
        pointer = copy / "last_checkpoint"
        if pointer.exists():
            read_checkpoint(copy / pointer.read_text())  # raises if it is not whole
    copy.mkdir(exist_ok=True)
    finish(1, data, copy)
    return [*faults, *faults_at_end(copy, reference)], done.returncode != 0


def main():
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        write_shapes(root / "shapes", num_train=12, num_val=4, image_sizes=((128, 128),), progress=False)
        undisturbed = {}
        for n in (1, 2):
            seconds, _ = finish(n, root, root / f"undisturbed{n}")
            undisturbed[n] = (read_checkpoint(root / f"undisturbed{n}" / "model_final.pth")["model"], seconds)
        size = sum(file.stat().st_size for file in (root / "undisturbed1").rglob("*") if file.is_file())
        for trial in tqdm(range(arguments.kills), desc="kills"):
            n = 1 + trial % 2
            role, *row = kill_once(n, root, root / f"kill{trial}", *undisturbed[n], rng)
            rows[f"{n} process{'es' if n > 1 else ''}, kill of: {role}"].append(row)
            shutil.rmtree(root / f"kill{trial}")
        for trial in tqdm(range(arguments.disks), desc="full disks"):
            num_bytes = int(size * rng.uniform(0.01, 1.1))
            faults, was_full = fill_once(root, root / f"disk{trial}", undisturbed[1][0], num_bytes)
            rows[f"disk {'full' if was_full else 'nearly full'}"].append((faults, 0.0, 0))
            shutil.rmtree(root / f"disk{trial}")
    print(
        "| trial | count | faults | seconds to the last process's end, median (most) | most iterations lost |"
    )
    print("|---|---|---|---|---|")
    for name, trials in sorted(rows.items()):
        faults = [fault for found, _, _ in trials for fault in found]
        waits = [waited for _, waited, _ in trials]
        print(
            f"| {name} | {len(trials)} | {len(faults)} | {statistics.median(waits):.1f} ({max(waits):.1f}) | "
            f"{max(lost for _, _, lost in trials)} |"
        )
        for fault in faults:
            print(f"{name}: {fault}", file=sys.stderr)
    sys.exit(1 if any(found for trials in rows.values() for found, _, _ in trials) else 0)


if __name__ == "__main__":
    main()
