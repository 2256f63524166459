"""What tests of the engine share: training steps in this process, and runs in others."""

import math
import socket
import sys

import torch

from atss_core.data import Batch
from atss_core.engine import TrainingStep
from atss_core.engine.build import build_inference
from atss_core.modeling import build_detector
from atss_core.solver import build_optimizer
from atss_core.structures import BoxList, ImageList
from tests.conftest import QUICK, TINY
from tests.golden import ROOT

CPU = torch.device("cpu")
# Images small enough for a CPU.
SMALL = ("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "MODEL.ATSS.INFERENCE_TH", "0.0")


def train(cfg, num_steps):
    """Train a fresh detector on one image; returns it and the loss terms of each step."""
    torch.manual_seed(0)
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    step = TrainingStep(detector, detector, optimizer, torch.amp.GradScaler("cpu", enabled=False), device=CPU)
    size = (64, 96)
    target = BoxList(torch.tensor([[10.0, 12.0, 60.0, 50.0]]), size, labels=torch.tensor([7]))
    head = detector.rpn.head
    before = [layer.weight.clone() for layer in (head.cls_logits, head.bbox_pred)]
    batch = Batch(ImageList(torch.randn(1, 3, *size), [size]), [target], [1], [])
    losses = [step([batch]) for _ in range(num_steps)]
    assert all(math.isfinite(loss) for terms in losses for loss in terms.values())
    for layer, weight in zip((head.cls_logits, head.bbox_pred), before, strict=True):
        assert not torch.equal(layer.weight, weight)
        assert layer.weight.isfinite().all()
    return detector, losses


def detect(cfg, detector):
    """Detect objects in one image; returns the detections."""
    inference = build_inference(cfg, detector.eval(), CPU)
    is_multi_scale = cfg.TEST.BBOX_AUG.ENABLED  # takes uint8 images and resizes them itself
    image = (
        torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) if is_multi_scale else torch.randn(3, 64, 96)
    )
    images = ImageList.from_tensors([image])
    with torch.inference_mode():
        (detections,) = inference.detect(inference.predict(images), images.image_sizes)
    assert len(detections) > 0
    assert detections.scores.isfinite().all()
    return detections


# Fixed batch norm and images of one size, so that nothing depends on the other images of a process.
ALONE = [
    *(
        "MODEL.RESNETS.TRANS_FUNC",
        "BasicBlockWithFixedBatchNorm",
        "MODEL.RESNETS.STEM_FUNC",
        "StemWithFixedBatchNorm",
    ),
    *("INPUT.MIN_SIZE_RANGE_TRAIN", "(-1, -1)", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.BASE_LR", "0.01"),
]


def command(num_processes, data, folder, more=(), launcher="torchrun"):
    """The command line that trains and evaluates in some processes on the CPU."""
    launchers = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"],
        "launch": ["-m", "torch.distributed.launch", f"--nproc_per_node={num_processes}"],
    }
    arguments = launchers[launcher] if num_processes > 1 else []
    if launcher == "launch":
        arguments.append(f"--master_port={free_port()}")
    opts = [*TINY, *more, "DATASETS.DATA_DIR", str(data), "OUTPUT_DIR", str(folder)]
    return [
        sys.executable,
        *arguments,
        str(ROOT / "tools" / "train_net.py"),
        "--config-file",
        str(QUICK),
        *opts,
    ]


def free_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]
