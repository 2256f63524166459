"""From the configuration to a device."""

import torch
from yacs.config import CfgNode

from atss_core.utils.env import choose_device


def build_device(cfg: CfgNode) -> torch.device:
    """Return the device that MODEL.DEVICE names; raises as ``choose_device``."""
    return choose_device(cfg.MODEL.DEVICE)
