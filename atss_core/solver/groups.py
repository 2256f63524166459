"""Which parameters learn how fast."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    bias_lr_factor: float = 2.0,
    bias_weight_decay: float = 0.0,
    offset_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay, in the model's order.

    Every name with "bias" in it counts as a bias, those of normalisation layers too; their weights and the
    learnt scales are decayed like any weight. That is how the published models were trained.

    Args:
        model: its trainable parameters are grouped.
        base_lr: learning rate of weights.
        weight_decay: of weights.
        bias_lr_factor: learning rate of biases over ``base_lr``.
        bias_weight_decay: of biases.
        offset_lr_factor: further factor for the offsets of deformable convolutions.

    Returns:
        Groups for a ``torch.optim`` optimizer; ``names`` lists the parameters of a group.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = "bias" in name
        lr = base_lr * (bias_lr_factor if is_bias else 1.0)
        if ".offset." in name:
            lr *= offset_lr_factor
        decay = bias_weight_decay if is_bias else weight_decay
        group = groups.setdefault((lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
