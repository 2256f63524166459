"""One update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from atss_core.data import Batch
from atss_core.modeling import Detector


class TrainingStep:
    """Update the weights with a batch that comes in one or several parts.

    Args:
        detector: is trained.
        model: the detector, or its wrapper for several processes.
        optimizer: of its parameters.
        scaler: of the loss; disabled except in float16.
        device: where the detector is.
        amp: type that convolutions run in (autocast), None for that of the weights.
        max_grad_norm: largest norm of all gradients together, 0 for any.
        average: follows the weights.
    """

    def __init__(
        self,
        detector: Detector,
        model: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        device: torch.device,
        amp: torch.dtype | None = None,
        max_grad_norm: float = 0.0,
        average: AveragedModel | None = None,
    ) -> None:
        self.detector = detector
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.device = device
        self.amp = amp
        self.max_grad_norm = max_grad_norm
        self.average = average

    def __call__(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Train on a batch, given in parts on the device, and return its loss terms, without gradient."""
        normalizers = None
        if len(parts) > 1:
            normalizers = self.detector.normalizers([(part.images, part.targets) for part in parts])
        self.optimizer.zero_grad()
        terms = []
        for part in parts:
            with self._gradients_are_shared(part is parts[-1]):
                terms.append(self._add_gradients(part, normalizers))
        if self.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.detector.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            update_ema(self.average, self.detector)
        return {name: torch.stack([losses[name] for losses in terms]).sum() for name in terms[0]}

    def _add_gradients(self, part: Batch, normalizers: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.amp) if self.amp else nullcontext():
            losses: dict[str, Tensor] = self.model(part.images, part.targets, normalizers)
        self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _gradients_are_shared(self, is_last: bool) -> AbstractContextManager:
        """Let only the last part send the gradients, which have added up, to the other processes."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()


@torch.no_grad()
def update_ema(average: AveragedModel, model: nn.Module) -> None:
    """Do what ``average.update_parameters`` does, which would copy a counter to the GPU and wait for that."""
    own = [*average.module.parameters(), *average.module.buffers()]
    new = [*model.parameters(), *model.buffers()]
    floats = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
    others = sorted(set(range(len(own))) - set(floats))
    if average.n_averaged == 0:
        floats, others = [], list(range(len(own)))
    assert average.multi_avg_fn is not None
    if floats:
        average.multi_avg_fn([own[i] for i in floats], [new[i] for i in floats], average.n_averaged)
    for i in others:
        own[i].copy_(new[i])
    average.n_averaged += 1
