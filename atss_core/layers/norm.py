"""Normalisation layers of the published models."""

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are fixed buffers.

    No epsilon is added to the variance, as in the training of the published weights.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift the channels of ``x`` (N, num_features, H, W)."""
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        # One pass over x; the backward pass keeps only the scale.
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


def group_norm(
    num_channels: int, num_groups: int = 32, channels_per_group: int = -1, eps: float = 1e-5
) -> nn.GroupNorm:
    """Build a group norm from the number of groups or the channels per group, whichever is positive.

    Raises:
        ValueError: if the groups do not divide the channels, or both or neither number is given.
    """
    if (num_groups > 0) == (channels_per_group > 0):
        raise ValueError(
            "give either MODEL.GROUP_NORM.NUM_GROUPS or DIM_PER_GP and set the other to -1, "
            f"got {num_groups} and {channels_per_group}"
        )
    groups = num_groups if num_groups > 0 else num_channels // channels_per_group
    if groups == 0 or num_channels % groups:
        raise ValueError(
            f"{num_channels} channels cannot be split into {groups} equal groups; change "
            f"MODEL.GROUP_NORM.NUM_GROUPS or DIM_PER_GP, or the width of the layer"
        )
    return nn.GroupNorm(groups, num_channels, eps=eps)
