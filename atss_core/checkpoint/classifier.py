"""Match the classifier of a checkpoint to the classes of the data, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from atss_core.checkpoint.fit import first_names
from atss_core.config.catalog import COCO_CLASSES
from atss_core.utils.text import printable

logger = logging.getLogger(__name__)

CLASSIFIER = ("rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias")


def match_classes(
    detector: nn.Module,
    weights: Mapping[str, Tensor],
    learned: Sequence[str] | None,
    class_names: Sequence[str] | None,
    source: str,
    *,
    partial: bool = False,
) -> dict[str, Tensor]:
    """Return weights whose classifier has its rows in the order of ``class_names``.

    Args:
        detector: would receive the weights; its classifier is for ``class_names``.
        weights: state dict of the checkpoint.
        learned: classes of the checkpoint in the order of its labels; None if it does not name them.
        class_names: classes of the data in the order of their labels; None takes those of the checkpoint.
        source: where the weights come from, for messages.
        partial: where the classes differ, take the rows of those that both have and leave the others as they
            are in the detector; else that is an error.

    Raises:
        ValueError: if the classes differ and this is not ``partial``, or if the names are not one per class.
    """
    wanted = list(class_names or learned or ())
    if not wanted:
        return dict(weights)
    num_classes: int = detector.get_submodule("rpn.head").num_classes  # type: ignore[assignment]
    if len(wanted) != num_classes:
        raise ValueError(
            f"{source}: expected {num_classes} class names, one fewer than MODEL.ATSS.NUM_CLASSES, got "
            f"{_listed(wanted)}. Correct that key or leave it out"
        )
    own = detector.state_dict()
    if not learned:
        _warn_without_names(own, weights, wanted, source)
    if not learned or learned == wanted:
        return dict(weights)
    is_same_set = sorted(learned) == sorted(wanted)
    if not is_same_set and not partial:
        raise ValueError(
            f"{source}: expected the classes of the data, {_listed(wanted)}, got {_listed(learned)}. Use "
            f"data of the same classes, or train on these with MODEL.WEIGHT_PARTIAL True"
        )
    _log_match(learned, wanted, source)
    shared = [name for name in wanted if name in learned]
    matched = dict(weights)
    for key in (key for key in CLASSIFIER if key in own and key in weights):
        value, rows = weights[key], own[key].cpu().unflatten(0, (-1, len(wanted))).clone()  # (A, C, ...)
        fits = value.is_floating_point() and value.shape == (len(rows) * len(learned), *own[key].shape[1:])
        if fits and shared:
            theirs = value.to(rows.dtype).unflatten(0, (-1, len(learned)))
            rows[:, [wanted.index(n) for n in shared]] = theirs[:, [learned.index(n) for n in shared]]
            matched[key] = rows.flatten(0, 1)
        elif not is_same_set:
            del matched[key]  # the shape may be right by chance, but the rows are of other classes
    return matched


def _log_match(learned: Sequence[str], wanted: Sequence[str], source: str) -> None:
    groups = {
        "loaded for": [name for name in wanted if name in learned],
        "fresh for": [name for name in wanted if name not in learned],
        "not used of": [name for name in learned if name not in wanted],
    }
    found = "; ".join(f"{what} {_listed(names)}" for what, names in groups.items() if names)
    logger.info("%s has other classes or another order; the classifier is matched by name: %s", source, found)


def _warn_without_names(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], wanted: list[str], source: str
) -> None:
    """Warn that the order of the classes is unknown, unless they are COCO's, as in published checkpoints."""
    key = CLASSIFIER[1]
    is_same_number = key in own and key in weights and own[key].shape == weights[key].shape
    if is_same_number and wanted != list(COCO_CLASSES):
        assumed = f" (COCO's order is {_listed(COCO_CLASSES)})" if len(wanted) == len(COCO_CLASSES) else ""
        logger.warning(
            "%s holds no class names%s; its classifier is taken to be for the classes of the data in their "
            "order: %s",
            *(source, assumed, _listed(wanted)),
        )


def _listed(class_names: Sequence[str]) -> str:
    return f"{len(class_names)} ({printable(first_names(class_names, width=600))})"
