"""One update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from atss_core.data import Batch
from atss_core.modeling import Detector


@dataclass
class TrainingStep:
    """Update the weights with a batch of one or several micro-batches.

    Args:
        detector: to train.
        model: the detector, or its wrapper for several processes.
        optimizer: of its parameters.
        scaler: of the loss; disabled except in float16.
        device: of the detector.
        amp: autocast type of convolutions, None for that of the weights.
        max_grad_norm: limit of the norm of all gradients together, 0 for none.
        ema: EMA weights.
    """

    detector: Detector
    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    _: KW_ONLY
    device: torch.device
    amp: torch.dtype | None = None
    max_grad_norm: float = 0.0
    ema: AveragedModel | None = None

    def __call__(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Train on micro-batches, which are on the device, and return the loss terms of all of them."""
        matched = self.detector.match([(batch.images, batch.targets) for batch in micro_batches])
        self.optimizer.zero_grad()
        terms = []
        for i, batch in enumerate(micro_batches):
            with self._gradient_sync(is_last=i == len(micro_batches) - 1):
                with torch.autocast(self.device.type, self.amp) if self.amp else nullcontext():
                    losses: dict[str, Tensor] = self.model(batch.images, matched=matched[i])
                self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            terms.append({name: loss.detach() for name, loss in losses.items()})
        if self.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.detector.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            update_ema(self.ema, self.detector)
        return {name: torch.stack([losses[name] for losses in terms]).sum() for name in terms[0]}

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """Synchronise gradients, which have accumulated until then, only with the last micro-batch."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()


@torch.no_grad()
def update_ema(ema: AveragedModel, model: nn.Module) -> None:
    """Do what ``ema.update_parameters`` does, which would copy a counter to the GPU and wait for that."""
    own = [*ema.module.parameters(), *ema.module.buffers()]
    new = [*model.parameters(), *model.buffers()]
    floats = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
    others = sorted(set(range(len(own))) - set(floats))
    if ema.n_averaged == 0:
        floats, others = [], list(range(len(own)))
    assert ema.multi_avg_fn is not None
    if floats:
        ema.multi_avg_fn([own[i] for i in floats], [new[i] for i in floats], ema.n_averaged)
    for i in others:
        own[i].copy_(new[i])
    ema.n_averaged += 1
