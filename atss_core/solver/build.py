"""Build optimizer, learning rate schedule and EMA weights from the configuration."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from yacs.config import CfgNode

from atss_core.config import checked
from atss_core.solver.schedule import cosine, multi_step, warmup

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> SGD:
    """Build SGD with a parameter group per learning rate and weight decay, in the model's order.

    Every name with "bias" in it counts as a bias, those of normalisation layers too; their weights and the
    learnt scales are decayed like any weight. That is how the published models were trained. ``names`` of a
    group lists its parameters.
    """
    solver = checked(cfg).SOLVER
    base_lr, reference = solver.BASE_LR, solver.LR_REFERENCE_BATCH
    if reference:
        base_lr = base_lr * solver.IMS_PER_BATCH / reference
        logger.info(
            "Learning rate %g = SOLVER.BASE_LR %g x IMS_PER_BATCH %d / LR_REFERENCE_BATCH %d",
            *(base_lr, solver.BASE_LR, solver.IMS_PER_BATCH, reference),
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = "bias" in name
        lr = base_lr * (solver.BIAS_LR_FACTOR if is_bias else 1.0)
        if ".offset." in name:  # of deformable convolutions
            lr *= solver.DCONV_OFFSETS_LR_FACTOR
        decay = solver.WEIGHT_DECAY_BIAS if is_bias else solver.WEIGHT_DECAY
        group = groups.setdefault((lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return SGD(list(groups.values()), lr=base_lr, momentum=solver.MOMENTUM)


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LambdaLR:
    """Build the schedule of SOLVER.SCHEDULE with its warm-up."""
    solver = checked(cfg).SOLVER
    schedule = partial(multi_step, steps=solver.STEPS, gamma=solver.GAMMA)
    if solver.SCHEDULE == "cosine":
        schedule = partial(cosine, max_iter=solver.MAX_ITER)
    factor = partial(
        warmup,
        schedule=schedule,
        factor=solver.WARMUP_FACTOR,
        num_iters=solver.WARMUP_ITERS,
        is_linear=solver.WARMUP_METHOD == "linear",
    )
    return LambdaLR(optimizer, factor)


def build_ema(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build the EMA of weights and batch-norm statistics; None if SOLVER.EMA_DECAY is 0."""
    decay = cfg.SOLVER.EMA_DECAY
    if decay == 0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
