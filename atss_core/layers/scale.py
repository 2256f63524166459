"""Learnable scale."""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiply by one learnable factor, initially ``init``."""

    def __init__(self, init: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([init]))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` of any shape."""
        return x * self.scale
