"""From the configuration to optimizer, schedule and averaged weights."""

import logging

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from yacs.config import CfgNode

from atss_core.config import checked
from atss_core.solver.groups import parameter_groups
from atss_core.solver.schedule import Cosine, MultiStep, Warmup

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> SGD:
    """Build SGD with the published parameter groups."""
    solver = checked(cfg).SOLVER
    base_lr = base_learning_rate(cfg)
    groups = parameter_groups(
        model,
        base_lr=base_lr,
        weight_decay=solver.WEIGHT_DECAY,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        bias_weight_decay=solver.WEIGHT_DECAY_BIAS,
        offset_lr_factor=solver.DCONV_OFFSETS_LR_FACTOR,
    )
    return SGD(groups, lr=base_lr, momentum=solver.MOMENTUM)


def base_learning_rate(cfg: CfgNode) -> float:
    """Return the rate before warm-up and schedule, and log it where it is scaled to the batch."""
    solver = cfg.SOLVER
    if not solver.LR_REFERENCE_BATCH:
        return solver.BASE_LR
    rate = solver.BASE_LR * solver.IMS_PER_BATCH / solver.LR_REFERENCE_BATCH
    logger.info(
        "Learning rate %g = SOLVER.BASE_LR %g x IMS_PER_BATCH %d / LR_REFERENCE_BATCH %d",
        rate,
        solver.BASE_LR,
        solver.IMS_PER_BATCH,
        solver.LR_REFERENCE_BATCH,
    )
    return rate


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LambdaLR:
    """Build the schedule that SOLVER.SCHEDULE names, with its warm-up."""
    solver = checked(cfg).SOLVER
    decay = (
        Cosine(solver.MAX_ITER)
        if solver.SCHEDULE == "cosine"
        else MultiStep(solver.STEPS, gamma=solver.GAMMA)
    )
    factor = Warmup(
        decay, factor=solver.WARMUP_FACTOR, num_iters=solver.WARMUP_ITERS, method=solver.WARMUP_METHOD
    )
    return LambdaLR(optimizer, factor)


def build_ema(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build the moving average of weights and batch-norm statistics, None where SOLVER.EMA_DECAY is 0."""
    decay = cfg.SOLVER.EMA_DECAY
    if decay == 0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
