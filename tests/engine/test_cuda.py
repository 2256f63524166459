"""Engine tests that need a GPU; ``benchmarks/gpu.sh`` runs these tests."""

import json

import pytest
import torch
from torch import distributed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import train as train_command
from atss_core.data import Batch
from atss_core.engine import TrainingStep
from atss_core.utils.dist import BACKENDS
from tests import golden
from tests.conftest import QUICK, TINY
from tests.devices import on_cuda

pytestmark = on_cuda


def make_step(amp=None):
    detector = golden.detector("atss_R_50_FPN_1x").train().cuda()
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", enabled=amp == torch.float16)
    average = AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    device = torch.device("cuda")
    return TrainingStep(
        detector, detector, optimizer, scaler, device=device, amp=amp, max_grad_norm=10.0, ema=average
    )


def batch():
    images = golden.images()
    return Batch(images, golden.targets(golden.arrays("loss_R50_ATSS_BOX"), images.image_sizes), [1, 2], [])


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_step_with_all_switches_does_not_wait_for_the_device(amp, num_micro_batches):
    step = make_step(amp)
    micro_batches = [batch().pin_memory() for _ in range(num_micro_batches)]
    step([each.to("cuda", non_blocking=True) for each in micro_batches])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step([each.to("cuda", non_blocking=True) for each in micro_batches])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_float16_with_its_scaler_learns():
    step = make_step(torch.float16)
    on_device = batch().to("cuda")
    losses = [sum(step([on_device]).values()).item() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_tensors_of_cpu_and_gpu_have_a_backend_each():
    distributed.init_process_group(BACKENDS["cuda"], store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for device in ("cpu", "cuda"):
            value = torch.ones(3, device=device)
            distributed.all_reduce(value)
            assert value.tolist() == [1, 1, 1]
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    "switch", [["MODEL.CHANNELS_LAST", "True"], ["MODEL.COMPILE", "True"], ["SOLVER.AMP", "bfloat16"], []]
)
def test_training_command(switch, shapes, tmp_path):
    folder = tmp_path / "run"
    calm = ["SOLVER.BASE_LR", "0.001", "INPUT.MIN_SIZE_RANGE_TRAIN", "(96, 96)", "MODEL.DEVICE", "cuda"]
    opts = [*TINY, *calm, *switch, "DATASETS.DATA_DIR", str(shapes), "OUTPUT_DIR", str(folder)]
    train_command.main(["--config-file", str(QUICK), *opts])
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert len(read_checkpoint(folder / "model_final.pth")["random"]["cuda"]) == torch.cuda.device_count()
