"""Several processes, on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from atss_core.cli import test
from atss_core.data import write_shapes
from atss_core.utils.checkpoint import read_checkpoint
from tests.conftest import QUICK, TINY
from tests.golden import ROOT

# Fixed batch norm and pictures of one size: what depends on the other pictures of a process is switched off.
ALONE = [
    *(
        "MODEL.RESNETS.TRANS_FUNC",
        "BasicBlockWithFixedBatchNorm",
        "MODEL.RESNETS.STEM_FUNC",
        "StemWithFixedBatchNorm",
    ),
    *("INPUT.MIN_SIZE_RANGE_TRAIN", "(-1, -1)", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.BASE_LR", "0.01"),
]


def train(num_processes, data, folder, more=()):
    """Train and test with ``torchrun``, or plainly for one process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [sys.executable, *(launcher if num_processes > 1 else []), str(ROOT / "tools" / "train_net.py")]
    opts = [*TINY, *more, "DATASETS.DATA_DIR", str(data), "OUTPUT_DIR", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--config-file", str(QUICK), *opts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run in one process and of one in two, on the same data."""
    folder = tmp_path_factory.mktemp("distributed")
    write_shapes(folder / "shapes", num_train=12, num_val=7, image_sizes=((128, 128),), progress=False)
    for num_processes in (1, 2):
        train(num_processes, folder, folder / str(num_processes), ALONE)
    return folder / "1", folder / "2"


def test_saved_batch_norm_statistics_are_those_that_were_tested(runs, tmp_path):
    data = runs[0].parent
    train(2, data, tmp_path)
    name = "inference/shapes_val/bbox.json"
    after_training = json.loads((tmp_path / name).read_text())
    opts = [*TINY, "DATASETS.DATA_DIR", str(data), "OUTPUT_DIR", str(tmp_path)]
    test.main(["--config-file", str(QUICK), *opts])
    again = json.loads((tmp_path / name).read_text())
    assert len(again) == len(after_training) > 0
    for first, second in zip(again, after_training, strict=True):
        assert first["image_id"] == second["image_id"]
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)


def test_two_processes_train_as_one(runs):
    first, second = (read_checkpoint(folder / "model_final.pth")["model"] for folder in runs)
    for key in first:
        assert torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-5), key
    start = torch.full_like(first["rpn.head.cls_logits.bias"], first["rpn.head.cls_logits.bias"].mean())
    assert not torch.equal(first["rpn.head.cls_logits.bias"], start)


def test_two_processes_count_every_picture_once(runs):
    first, second = (torch.load(f / "inference/shapes_val/predictions.pth", weights_only=True) for f in runs)
    assert sorted(first) == sorted(second)
    assert len(first) == 7


def test_losses_are_logged_as_means_over_the_processes(runs):
    first, second = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in runs
    )
    assert first == pytest.approx(second, rel=1e-3)
    assert len(first) == 3
