"""From the configuration to optimizer and schedule."""

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from yacs.config import CfgNode

from atss_core.solver.groups import parameter_groups
from atss_core.solver.schedule import WarmupMultiStep


def build_optimizer(cfg: CfgNode, model: nn.Module) -> SGD:
    """Build SGD with the published parameter groups."""
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        bias_weight_decay=solver.WEIGHT_DECAY_BIAS,
        offset_lr_factor=solver.DCONV_OFFSETS_LR_FACTOR,
    )
    return SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM)


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LambdaLR:
    """Build the warm-up and step schedule."""
    solver = cfg.SOLVER
    factor = WarmupMultiStep(
        solver.STEPS,
        gamma=solver.GAMMA,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD,
    )
    return LambdaLR(optimizer, factor)
