"""Switches of precision and speed, each compared with training without it."""

import json
import shutil

import pytest
import torch
from torch import nn

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import train as train_command
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.data import Batch
from atss_core.engine import TrainingStep
from atss_core.engine.step import update_ema
from atss_core.modeling import build_detector
from atss_core.solver import build_ema, build_optimizer, build_scheduler
from atss_core.structures import BoxList, ImageList
from tests.conftest import QUICK, TINY

CPU = torch.device("cpu")
# A learning rate at which rounding does not grow. P6 has more than one cell: on some CPUs PyTorch's bfloat16
# convolution leaves garbage in the gradient of a weight that strides over a single cell.
CALM = ["SOLVER.BASE_LR", "0.001", "INPUT.MIN_SIZE_RANGE_TRAIN", "(72, 96)"]


@pytest.fixture
def train(shapes, tmp_path):
    """Train with more overrides in a folder of its own; returns final checkpoint and losses."""

    def trained(name, *more):
        folder = tmp_path / name
        opts = [*TINY, *CALM, "DATASETS.DATA_DIR", str(shapes), "OUTPUT_DIR", str(folder), *more]
        train_command.main(["--config-file", str(QUICK), "--skip-test", *opts])
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        return read_checkpoint(folder / "model_final.pth"), losses

    return trained


@pytest.fixture
def default_algorithms():
    yield
    torch.use_deterministic_algorithms(False)


def assert_equal(first, second):
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def test_channels_last_changes_rounding_alone(train):
    (default, losses), (other, other_losses) = train("default"), train("last", "MODEL.CHANNELS_LAST", "True")
    assert other_losses == pytest.approx(losses, rel=1e-4)
    for key, value in default["model"].items():
        assert torch.allclose(other["model"][key], value, rtol=1e-3, atol=1e-4), key
    assert other["model"]["backbone.body.layer2.0.conv1.weight"].is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.usefixtures("default_algorithms")
def test_deterministic_mode_changes_nothing_on_the_cpu(train):
    default, _ = train("default")
    other, _ = train("deterministic", "DETERMINISTIC", "True")
    assert torch.are_deterministic_algorithms_enabled()
    assert_equal(default["model"], other["model"])


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_changes_losses_by_its_rounding(train, amp):
    (_, losses), (other, other_losses) = train("default"), train(amp, "SOLVER.AMP", amp)
    assert other_losses != losses
    assert other_losses == pytest.approx(losses, rel=0.02)
    assert {value.dtype for value in other["model"].values()} <= {torch.float32, torch.int64}
    assert bool(other["scaler"]) == (amp == "float16")


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler"
)
def test_compiled_network_computes_the_same(train):
    small = ["SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_RANGE_TRAIN", "(64, 64)"]
    (default, losses), (other, other_losses) = (
        train("default", *small),
        train("compiled", *small, "MODEL.COMPILE", "True"),
    )
    assert default["model"].keys() == other["model"].keys()
    assert other_losses == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("amp", ["", "float16"])
def test_ema_and_scaler_are_resumed_exactly(train, tmp_path, amp):
    more = ["SOLVER.EMA_DECAY", "0.9", "SOLVER.AMP", amp, "SOLVER.GRAD_ACCUM_STEPS", "2"]
    whole, _ = train("whole", *more)
    train("resumed", *more, "SOLVER.MAX_ITER", "3")
    resumed, _ = train("resumed", *more)
    assert_equal(whole["model"], resumed["model"])
    assert_equal(whole["ema"]["model"], resumed["ema"]["model"])
    assert whole["ema"]["num_updates"] == resumed["ema"]["num_updates"] == 6
    assert whole["scaler"] == resumed["scaler"]


def test_ema_can_be_switched_on_later(train):
    train("run", "SOLVER.MAX_ITER", "3")
    state, _ = train("run", "SOLVER.EMA_DECAY", "0.5")
    assert state["ema"]["num_updates"] == 3


def make_step(opts=(), **options):
    torch.manual_seed(0)
    cfg = load_cfg(QUICK, [*TINY, *opts])
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainingStep(detector, detector, optimizer, scaler, device=CPU, **options)
    return step, cfg


def batch(num_images=2, with_boxes=True):
    size = (64, 64)
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[5.0, 5.0, 40.0, 40.0]])[: int(with_boxes)]
    targets = [BoxList(boxes, size, labels=torch.ones(len(boxes), dtype=torch.int64))] * num_images
    images = ImageList(torch.randn(num_images, 3, *size, generator=generator), [size] * num_images)
    return Batch(images, targets, list(range(num_images)), [])


def gradient_norm(step):
    return torch.stack([p.grad.norm() for p in step.detector.parameters() if p.grad is not None]).norm()


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_gradients_are_clipped_to_their_norm(limit):
    free, _ = make_step()
    free([batch()])
    clipped, _ = make_step(max_grad_norm=limit)
    clipped([batch()])
    assert gradient_norm(free) > 0.5
    assert gradient_norm(clipped) == pytest.approx(min(limit, gradient_norm(free).item()), rel=1e-4)


@pytest.mark.parametrize("with_boxes", [True, False])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(with_boxes):
    """Also without an object in one micro-batch, or in both."""
    whole, _ = make_step(ALONE_NORM)
    first, second = batch(1), batch(1, with_boxes)
    images = ImageList(torch.cat([first.images.tensors, second.images.tensors]), [(64, 64)] * 2)
    losses = whole([Batch(images, [*first.targets, *second.targets], [0, 1], [])])
    split, _ = make_step(ALONE_NORM)
    split_losses = split([first, second])
    for name, loss in losses.items():
        assert split_losses[name].item() == pytest.approx(loss.item(), rel=1e-5)
    assert gradient_norm(split) == pytest.approx(gradient_norm(whole).item(), rel=1e-4)


# Fixed batch norm: statistics of a batch depend on what is in it.
ALONE_NORM = [
    *("MODEL.RESNETS.TRANS_FUNC", "BasicBlockWithFixedBatchNorm"),
    *("MODEL.RESNETS.STEM_FUNC", "StemWithFixedBatchNorm"),
]


@pytest.mark.parametrize("size", [(64, 64), (63, 65), (1, 1), (128, 257), (800, 1216)])
def test_grids_of_an_image_are_those_of_its_features(size):
    step, _ = make_step()
    detector = step.detector.eval()
    with torch.inference_mode():
        outputs = detector.predict(ImageList(torch.zeros(1, 3, *size), [size]))
    generator = detector.rpn.anchor_generator
    assert torch.equal(generator.for_image(size).boxes, generator(outputs.grid_sizes).boxes)


def test_cosine_schedule_falls_to_zero_after_its_warm_up():
    cfg = load_cfg(
        None, ["SOLVER.SCHEDULE", "cosine", "SOLVER.MAX_ITER", "1000", "SOLVER.WARMUP_ITERS", "100"]
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = build_scheduler(cfg, optimizer).lr_lambdas[0]
    assert factor(0) == pytest.approx(1 / 3)
    assert factor(500) == pytest.approx(0.5)
    assert factor(1000) == pytest.approx(0.0)
    assert all(factor(i) > factor(i + 1) for i in range(100, 1000))


def test_learning_rate_is_scaled_to_the_batch_only_on_demand(train, capsys):
    step, _ = make_step(["SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01"])
    assert step.optimizer.defaults["lr"] == 0.01
    train("run", "SOLVER.BASE_LR", "0.01", "SOLVER.LR_REFERENCE_BATCH", "16")
    assert "Learning rate 0.0025 = SOLVER.BASE_LR 0.01 x IMS_PER_BATCH 4 / LR_REFERENCE_BATCH 16" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.AMP", "half"], "SOLVER.AMP must be one of '', 'bfloat16', 'float16', got 'half'"),
        (["SOLVER.SCHEDULE", "poly"], "SOLVER.SCHEDULE must be one of 'step', 'cosine', got 'poly'"),
        (["SOLVER.EMA_DECAY", "1.0"], "SOLVER.EMA_DECAY must be in [0, 1)"),
        (["SOLVER.GRAD_ACCUM_STEPS", "3"], "processes x 3 micro-batches (SOLVER.GRAD_ACCUM_STEPS), got 4"),
        (["SOLVER.GRAD_ACCUM_STEPS", "0"], "SOLVER.GRAD_ACCUM_STEPS must be in [1, 1e6], got 0"),
        (["SOLVER.CLIP_GRAD_NORM", "-1.0"], "SOLVER.CLIP_GRAD_NORM must be in [0, 1e9], got -1.0"),
        (["SOLVER.LR_REFERENCE_BATCH", "-16"], "SOLVER.LR_REFERENCE_BATCH must be in [0, 1e6], got -16"),
        (["TEST.BEST_METRIC", "mAP"], "TEST.BEST_METRIC must be one of 'AP', 'AP50'"),
        (["TEST.EVAL_PERIOD", "-1"], "TEST.EVAL_PERIOD must be in [0, 1e9], got -1"),
    ],
)
def test_wrong_settings_end_in_one_line(opts, message, tiny, capsys):
    with pytest.raises(SystemExit):
        run(train_command.main, ["--config-file", str(QUICK), "--skip-test", *tiny, *opts])
    assert message in capsys.readouterr().err


def test_ema_is_none_by_default():
    step, cfg = make_step()
    assert build_ema(cfg, step.detector) is None


def test_synchronised_batch_norm_keeps_keys_parameters_and_their_order():
    step, cfg = make_step(["SOLVER.EMA_DECAY", "0.5"])
    average = build_ema(cfg, step.detector)
    keys, parameters = list(step.detector.state_dict()), list(step.detector.parameters())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(step.detector)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert list(converted.state_dict()) == keys == list(average.module.state_dict())
    assert all(own is other for own, other in zip(converted.parameters(), parameters, strict=True))


def test_ema_is_that_of_pytorch():
    step, cfg = make_step(["SOLVER.EMA_DECAY", "0.5"])
    own, pytorch = (build_ema(cfg, step.detector) for _ in range(2))
    for _ in range(3):
        step([batch()])
        update_ema(own, step.detector)
        pytorch.update_parameters(step.detector)
    assert own.n_averaged == pytorch.n_averaged == 3
    floats = {
        k: v for k, v in pytorch.module.state_dict().items() if v.is_floating_point()
    }  # counts are copied
    assert_equal(floats, own.module.state_dict())
    assert not torch.equal(own.module.rpn.head.cls_logits.bias, step.detector.rpn.head.cls_logits.bias)
