"""Check configuration values: the type of the default, and the limits of the table at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from yacs.config import CfgNode

from atss_core.config.reading import shorten


@dataclass(frozen=True)
class Limit:
    """Allowed values of a key, or of each element of a list. NaN and infinities are in no interval."""

    low: float = 0
    high: float = 0  # the interval is empty unless this is above ``low``
    ends: str = "[]"
    choices: tuple[Any, ...] = ()  # further allowed values; for strings the only ones
    length: int | None = None  # of a list; None for any
    may_be_empty: bool = False
    is_rising: bool = False

    def allows(self, value: Any) -> bool:
        """Tell whether a value of the right type is within the limit."""
        if value in self.choices:
            return True
        if not isinstance(value, (list, tuple)):
            return self._allows_element(value)
        return (
            self.length in (None, len(value))
            and (self.may_be_empty or bool(value))
            and all(map(self._allows_element, value))
            and (not self.is_rising or list(value) == sorted(value))
        )

    def _allows_element(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return bool(value) and all(map(self._allows_element, value))
        if isinstance(value, (bool, str)):
            return not self.choices or value in self.choices
        is_above = value > self.low if self.ends[0] == "(" else value >= self.low
        is_below = value < self.high if self.ends[1] == ")" else value <= self.high
        return self.low < self.high and is_above and is_below

    def __str__(self) -> str:
        count = f"{self.length} values " if self.length else "rising, " if self.is_rising else ""
        interval = f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}".replace("e+0", "e")
        choices = f"{'one of ' if len(self.choices) > 1 else ''}{', '.join(map(repr, self.choices))}"
        allowed = [interval] * (self.low < self.high) + [choices] * bool(self.choices)
        return (count + " or ".join(allowed)).strip()


def check_value(value: Any, default: Any, key: str, source: str) -> Any:
    """Return a value of a key converted to the type of its default, with ``~`` expanded in paths.

    Raises:
        ValueError: if the value has another type or is outside the limits of the key.
    """
    if value is None and isinstance(default, str):
        value = ""
    if isinstance(value, str) and key in _ONE_OR_MORE:
        value = (value,)
    value = _coerce(value, default, key, source)
    if key in LIMITS and not LIMITS[key].allows(value):
        raise ValueError(f"{source}: {key} must be {LIMITS[key]}, got {shorten(value)}")
    return os.path.expanduser(value) if key in _PATHS else value


def check_node(node: CfgNode, defaults: CfgNode, source: str) -> None:
    """Check and convert all values of a configuration that is not frozen, in place.

    Raises:
        ValueError: as ``check_value``, and if a key is missing.
    """
    for key, default in leaves(defaults):
        *sections, leaf = key.split(".")
        parent: Any = reduce(lambda section, name: section.get(name, {}), sections, node)
        if leaf not in parent:
            raise ValueError(f"{source}: expected the key {key}, got none. Start from get_cfg().")
        parent[leaf] = check_value(parent[leaf], default, key, source)


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all keys, such as "SOLVER.BASE_LR", with their values."""
    for name, value in node.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, CfgNode):
            yield from leaves(value, key)
        else:
            yield key, value


def _coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Convert between lists and tuples, and whole numbers to float where the default is one."""
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        example = _ELEMENTS.get(key, default[0] if default else None)
        return type(default)(
            _coerce_element(item, example, f"{key}[{i}]", source, is_nested=key in _NESTED)
            for i, item in enumerate(value)
        )
    if type(default) is float and type(value) is int and abs(value) < 1e300:  # larger ones overflow
        return float(value)
    # ``type``, because a bool is an instance of int.
    is_number = type(default) is int and type(value) is float and key in _NUMBERS
    if (type(value) is type(default) or is_number) and "\0" not in (value if isinstance(value, str) else ""):
        return value
    raise ValueError(
        f"{source}: {key} must be {_describe(default, key)}, got {shorten(value)} ({type(value).__name__})"
    )


def _coerce_element(item: Any, example: Any, key: str, source: str, is_nested: bool) -> Any:
    if is_nested and isinstance(item, (list, tuple)):
        return tuple(_coerce(each, float(example), key, source) for each in item)
    if not isinstance(example, tuple):
        return _coerce(item, example, key, source)
    if not isinstance(item, (list, tuple)) or len(item) != len(example):
        raise ValueError(f"{source}: {key} must be like {example}, got {shorten(item)}")
    return type(item)(_coerce(each, like, key, source) for each, like in zip(item, example, strict=True))


def _describe(default: Any, key: str) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    if isinstance(default, (list, tuple)):
        return f"a list with elements like {_ELEMENTS.get(key, *default[:1])!r}, such as {tuple(default)!r}"
    return f"{names[type(default)]}, such as {default!r}"


# Keys whose elements may be lists: several anchor sizes per level.
_NESTED = ("MODEL.ATSS.ANCHOR_SIZES",)
# Lists that may be given as their only element.
_ONE_OR_MORE = ("DATASETS.TRAIN", "DATASETS.TEST")
# Keys whose published default is a whole number although any number makes sense.
_NUMBERS = ("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_BIAS", "TEST.EXPECTED_RESULTS_SIGMA_TOL")
# File system paths; ``catalog.parse_dataset_path`` expands dataset paths.
_PATHS = ("OUTPUT_DIR", "DATASETS.DATA_DIR", "MODEL.WEIGHT")
# An example element of each list that is empty by default.
_ELEMENTS: dict[str, Any] = {
    "DATASETS.TRAIN": "coco_2017_train",
    "DATASETS.TEST": "coco_2017_val",
    "TEST.EXPECTED_RESULTS": ("bbox", "AP", 0.393, 0.002),
    "TEST.BBOX_AUG.SCALES": 800,
    "TEST.BBOX_AUG.SCALE_RANGES": (0.0, 96.0),
}

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_COUNT = Limit(1, 1e9)
_COUNT_OR_OFF = Limit(0, 1e9)
_FRACTION = Limit(0, 1)
_FACTOR = Limit(0, 1000)
_CHANNELS = Limit(1, 1e5)
_PIXELS = Limit(1, 1e5)

# Every numeric key has a row, which excludes meaningless values; the builders check combinations of keys.
# Names that a registry holds have none, because users can add to it.
LIMITS = {
    "MODEL.META_ARCHITECTURE": Limit(choices=("GeneralizedRCNN",)),
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": Limit(0, 5),
    "MODEL.GROUP_NORM.DIM_PER_GP": Limit(-1, 1e5),
    "MODEL.GROUP_NORM.NUM_GROUPS": Limit(-1, 1e5),
    "MODEL.GROUP_NORM.EPSILON": Limit(0, 1, "(]"),
    "MODEL.RESNETS.NUM_GROUPS": _CHANNELS,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _CHANNELS,
    "MODEL.RESNETS.RES5_DILATION": Limit(choices=(1,)),
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": _CHANNELS,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _CHANNELS,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _CHANNELS,
    "MODEL.RESNETS.STAGE_WITH_DCN": Limit(length=4),
    "MODEL.RESNETS.DEFORMABLE_GROUPS": _CHANNELS,
    "MODEL.ATSS.NUM_CLASSES": Limit(2, 1e5),
    "MODEL.ATSS.ANCHOR_SIZES": Limit(0, 1e5, "(]"),
    "MODEL.ATSS.ASPECT_RATIOS": Limit(0, 1000, "(]"),
    "MODEL.ATSS.ANCHOR_STRIDES": Limit(choices=((8, 16, 32, 64, 128),)),
    "MODEL.ATSS.STRADDLE_THRESH": Limit(-1, 1e5),
    "MODEL.ATSS.OCTAVE": Limit(0, 1000, "(]"),
    "MODEL.ATSS.SCALES_PER_OCTAVE": Limit(1, 100),
    "MODEL.ATSS.NUM_CONVS": Limit(0, 100),
    "MODEL.ATSS.LOSS_ALPHA": _FRACTION,
    "MODEL.ATSS.LOSS_GAMMA": Limit(0, 100),
    "MODEL.ATSS.FG_IOU_THRESHOLD": _FRACTION,
    "MODEL.ATSS.BG_IOU_THRESHOLD": _FRACTION,
    "MODEL.ATSS.TOPK": Limit(1, 1e5),
    "MODEL.ATSS.CENTER_SAMPLING_RADIUS": _FACTOR,
    "MODEL.ATSS.REG_LOSS_WEIGHT": _FACTOR,
    "MODEL.ATSS.PRIOR_PROB": Limit(0, 1, "()"),
    "MODEL.ATSS.INFERENCE_TH": _FRACTION,
    "MODEL.ATSS.NMS_TH": _FRACTION,
    "MODEL.ATSS.PRE_NMS_TOP_N": Limit(1, 1e6),
    "INPUT.MIN_SIZE_TRAIN": _PIXELS,
    "INPUT.MIN_SIZE_RANGE_TRAIN": Limit(1, 1e5, choices=((-1, -1),), length=2, is_rising=True),
    "INPUT.MAX_SIZE_TRAIN": _PIXELS,
    "INPUT.MIN_SIZE_TEST": _PIXELS,
    "INPUT.MAX_SIZE_TEST": _PIXELS,
    "INPUT.MAX_PIXELS": Limit(1, 1e11),
    "INPUT.GREY_BITS": Limit(8, 32, choices=(0,)),
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": _FRACTION,
    "INPUT.PIXEL_MEAN": Limit(0, 255, length=3),
    "INPUT.PIXEL_STD": Limit(0, 255, "(]", length=3),
    "DATALOADER.NUM_WORKERS": Limit(0, 1024),
    "DATALOADER.SIZE_DIVISIBILITY": Limit(0, 4096),
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": Limit(1, 1e6),
    "SOLVER.BASE_LR": _FACTOR,
    "SOLVER.BIAS_LR_FACTOR": _FACTOR,
    "SOLVER.DCONV_OFFSETS_LR_FACTOR": _FACTOR,
    "SOLVER.MOMENTUM": Limit(0, 1, "[)"),
    "SOLVER.WEIGHT_DECAY": _FACTOR,
    "SOLVER.WEIGHT_DECAY_BIAS": _FACTOR,
    "SOLVER.GAMMA": _FACTOR,
    "SOLVER.STEPS": Limit(0, 1e9, may_be_empty=True, is_rising=True),
    "SOLVER.WARMUP_FACTOR": _FRACTION,
    "SOLVER.WARMUP_ITERS": _COUNT_OR_OFF,
    "SOLVER.WARMUP_METHOD": Limit(choices=("linear", "constant")),
    "SOLVER.SCHEDULE": Limit(choices=("step", "cosine")),
    "SOLVER.LR_REFERENCE_BATCH": Limit(0, 1e6),
    "SOLVER.GRAD_ACCUM_STEPS": Limit(1, 1e6),
    "SOLVER.AMP": Limit(choices=("", "bfloat16", "float16")),
    "SOLVER.CLIP_GRAD_NORM": Limit(0, 1e9),
    "SOLVER.EMA_DECAY": Limit(0, 1, "[)"),
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.LOG_PERIOD": _COUNT,
    "TEST.EXPECTED_RESULTS": Limit(0, 1, choices=("bbox", *_METRICS), may_be_empty=True),
    "TEST.EXPECTED_RESULTS_SIGMA_TOL": Limit(0, 1e6),
    "TEST.IMS_PER_BATCH": Limit(1, 1e6),
    "TEST.DETECTIONS_PER_IMG": Limit(0, 1e6),
    "TEST.EVAL_PERIOD": _COUNT_OR_OFF,
    "TEST.BEST_METRIC": Limit(choices=_METRICS),
    "TEST.COCO_EVAL": Limit(choices=("auto", "hotcoco", "faster_coco_eval", "pycocotools")),
    "TEST.BBOX_AUG.SCALES": Limit(1, 1e5, may_be_empty=True),
    "TEST.BBOX_AUG.MAX_SIZE": _PIXELS,
    "TEST.BBOX_AUG.VOTE_TH": _FRACTION,
    "TEST.BBOX_AUG.MERGE_TYPE": Limit(choices=("vote", "soft-vote", "nms")),
    "TEST.BBOX_AUG.SCALE_RANGES": Limit(0, 1e9, may_be_empty=True),
    "SEED": Limit(0, 4e9),
}
