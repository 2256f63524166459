"""Invalid values for every key: an error of one line that names the key, or a reason to allow them here."""

import math
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from atss_core.config import checked, get_cfg, is_given, load_cfg, override
from atss_core.config.catalog import check_dataset_name, find_dataset, parse_dataset_path, shipped_configs
from atss_core.config.values import LIMITS, check_value, leaves
from atss_core.engine.build import PRECISIONS
from atss_core.evaluation import METRIC_NAMES
from atss_core.evaluation.backends import AUTO, BACKENDS
from atss_core.modeling import build_detector

DEFAULTS = dict(leaves(get_cfg()))
FLAGS = {key for key, value in DEFAULTS.items() if isinstance(value, bool)}
# Registered names, paths and URLs: the code that looks them up refuses unknown ones.
TEXT = {key for key, value in DEFAULTS.items() if isinstance(value, str) and key not in LIMITS}
DATA = {"DATASETS.TRAIN", "DATASETS.TEST"}

INVALID = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "-1": -1,
    "-0.5": -0.5,
    "0": 0,
    "10**12": 10**12,
    "1e12": 1e12,
    "10**5000": 10**5000,
    "2**20000": 1 << 20_000,
    "True": True,
    "text": "nonsense",
    "nul": "a\0b",
    "empty text": "",
    "None": None,
    "[]": [],
    "[[]]": [[]],
    "[[1]]": [[1]],
    "[nan]": [math.nan],
    "3 nan": [math.nan] * 3,
    "[-1]": [-1],
    "[0]": [0],
    "[10**12]": [10**12],
    "[None]": [None],
    "[True]": [True],
    "{}": {},
    "object": object(),
}

# Values of INVALID that a key may have, and why.
ALLOWED = {
    "True": FLAGS,
    "text": TEXT | DATA,
    "empty text": TEXT | DATA | {"SOLVER.AMP"},  # none, or an error of the code that looks it up
    "None": TEXT | {"SOLVER.AMP"},  # an empty value in YAML is an empty string
    "[]": {
        *DATA,  # not every command needs both
        "SOLVER.STEPS",  # a constant learning rate
        "TEST.EXPECTED_RESULTS",
        "TEST.BBOX_AUG.SCALES",
        "TEST.BBOX_AUG.SCALE_RANGES",
    },
    "[[1]]": {"MODEL.ATSS.ANCHOR_SIZES"},  # several sizes per level; the builder checks their number
    "[0]": {"SOLVER.STEPS"},
    "-1": {
        "MODEL.GROUP_NORM.DIM_PER_GP",  # the other of the two keys is used
        "MODEL.GROUP_NORM.NUM_GROUPS",
        "MODEL.ATSS.STRADDLE_THRESH",  # no mark
    },
    "0": {
        "MODEL.BACKBONE.FREEZE_CONV_BODY_AT",  # nothing is frozen
        "MODEL.GROUP_NORM.DIM_PER_GP",  # like -1
        "MODEL.GROUP_NORM.NUM_GROUPS",
        "MODEL.ATSS.STRADDLE_THRESH",
        "MODEL.ATSS.NUM_CONVS",  # predictions directly on the FPN
        "MODEL.ATSS.LOSS_ALPHA",  # from here on: bounds of intervals, and terms that 0 disables
        "MODEL.ATSS.LOSS_GAMMA",
        "MODEL.ATSS.FG_IOU_THRESHOLD",
        "MODEL.ATSS.BG_IOU_THRESHOLD",
        "MODEL.ATSS.CENTER_SAMPLING_RADIUS",
        "MODEL.ATSS.REG_LOSS_WEIGHT",
        "MODEL.ATSS.INFERENCE_TH",
        "MODEL.ATSS.NMS_TH",
        "INPUT.HORIZONTAL_FLIP_PROB_TRAIN",
        "INPUT.GREY_BITS",  # the bit depth of the file
        "DATALOADER.NUM_WORKERS",  # load in the main process
        "DATALOADER.SIZE_DIVISIBILITY",
        "SOLVER.BASE_LR",
        "SOLVER.BIAS_LR_FACTOR",
        "SOLVER.DCONV_OFFSETS_LR_FACTOR",
        "SOLVER.MOMENTUM",
        "SOLVER.WEIGHT_DECAY",
        "SOLVER.WEIGHT_DECAY_BIAS",
        "SOLVER.GAMMA",
        "SOLVER.WARMUP_FACTOR",
        "SOLVER.WARMUP_ITERS",
        "SOLVER.LR_REFERENCE_BATCH",
        "SOLVER.CLIP_GRAD_NORM",
        "SOLVER.EMA_DECAY",
        "TEST.EXPECTED_RESULTS_SIGMA_TOL",
        "TEST.DETECTIONS_PER_IMG",
        "TEST.EVAL_PERIOD",
        "TEST.BBOX_AUG.VOTE_TH",
        "SEED",
    },
}


def refusal(read):
    """Return the message of a ValueError, which has one line; None without an error."""
    try:
        read()
    except ValueError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("key", DEFAULTS)
def test_an_invalid_value_is_an_error_that_names_the_key(key):
    accepted = set()
    for name, value in INVALID.items():
        message = refusal(lambda value=value: check_value(value, DEFAULTS[key], key, "mine.yaml"))
        if message is None:
            accepted.add(name)
        else:
            assert message.startswith(f"mine.yaml: {key}"), message
    assert accepted == {name for name, keys in ALLOWED.items() if key in keys}


WAYS_TO_SET = {
    "command line": lambda key, value, folder: load_cfg(opts=[key, repr(value)]),
    "file": lambda key, value, folder: load_cfg(write(folder / "my.yaml", key, value)),
    "override": lambda key, value, folder: override(load_cfg(), key, value),
    "freeze": lambda key, value, folder: changed(key, value).freeze(),
    "build": lambda key, value, folder: build_detector(changed(key, value)),
    "build from a plain node": lambda key, value, folder: build_detector(plain(changed(key, value))),
}


def write(file, key, value):
    *sections, leaf = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    file.write_text("\n".join([*lines, f"{'  ' * len(sections)}{leaf}: {value!r}\n"]))
    return file


def changed(key, value):
    cfg = get_cfg()
    *sections, leaf = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[leaf] = value
    return cfg


def plain(cfg):
    """Return the same configuration as a plain node of yacs."""
    return CfgNode(yaml.safe_load(cfg.dump()))


@pytest.mark.parametrize("way", WAYS_TO_SET)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", -0.1, "SOLVER.BASE_LR must be in [0, 1000], got -0.1"),
        ("SOLVER.BASE_LR", 1e400, "SOLVER.BASE_LR must be "),  # the command line reads "inf" as a string
        ("SOLVER.MOMENTUM", 1.0, "SOLVER.MOMENTUM must be in [0, 1), got 1.0"),
        ("SOLVER.STEPS", (5, 3), "SOLVER.STEPS must be rising, in [0, 1e9], got (5, 3)"),
        ("SOLVER.AMP", "half", "SOLVER.AMP must be one of '', 'bfloat16', 'float16', got 'half'"),
        ("INPUT.MAX_SIZE_TRAIN", 0, "INPUT.MAX_SIZE_TRAIN must be in [1, 100000], got 0"),
        ("INPUT.MIN_SIZE_RANGE_TRAIN", (9, 3), "must be 2 values in [1, 100000] or (-1, -1), got (9, 3)"),
        ("INPUT.PIXEL_STD", [1.0, 0.0, 1.0], "INPUT.PIXEL_STD must be 3 values in (0, 255], got "),
        ("MODEL.ATSS.NUM_CONVS", -1, "MODEL.ATSS.NUM_CONVS must be in [0, 100], got -1"),
        (
            "MODEL.ATSS.ANCHOR_STRIDES",
            (4, 8, 16, 32, 64),
            "ANCHOR_STRIDES must be (8, 16, 32, 64, 128), got ",
        ),
        ("DATALOADER.NUM_WORKERS", 10**12, "NUM_WORKERS must be in [0, 1024], got 1000000000000"),
        (
            "TEST.BBOX_AUG.SCALE_RANGES",
            ((1, 2, 3),),
            "SCALE_RANGES[0] must be like (0.0, 96.0), got ",
        ),
        (
            "TEST.EXPECTED_RESULTS",
            [["bbox", "mAP", 0.4, 0.1]],
            "TEST.EXPECTED_RESULTS must be in [0, 1] or one",
        ),
    ],
)
def test_every_entry_point_refuses_invalid_values(way, key, value, message, tmp_path):
    error = refusal(lambda: WAYS_TO_SET[way](key, value, tmp_path))
    assert message in error
    source = {"command line": "the command line", "file": str(tmp_path / "my.yaml")}.get(way, "the program")
    assert error.startswith(f"{source}: {key.split('.')[0]}")


LITERALS = ["1e400", "-1e400", "9" * 5000, "(" * 100_000, "-" * 100_000 + "1", "{[]: 1}"]


@pytest.mark.parametrize("text", LITERALS, ids=range(len(LITERALS)))
def test_invalid_literals_are_an_error_of_one_line(text):
    message = refusal(lambda: load_cfg(opts=["SOLVER.BASE_LR", text]))
    assert message.startswith("the command line: SOLVER.BASE_LR must be ")
    assert "unknown key" in refusal(lambda: load_cfg(opts=[f"A.{text}\n", "1"]))


def test_every_numeric_key_has_limits_that_allow_its_default():
    def has_numbers(value):
        if isinstance(value, (list, tuple)):
            return any(map(has_numbers, value))
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    assert {key for key, value in DEFAULTS.items() if has_numbers(value)} <= set(LIMITS) <= set(DEFAULTS)
    assert {key for key, value in DEFAULTS.items() if value in ([], ())} <= set(LIMITS) | DATA
    for key, limit in LIMITS.items():
        assert limit.allows(DEFAULTS[key]), key


def test_choices_equal_those_of_the_code():
    assert LIMITS["TEST.BEST_METRIC"].choices == METRIC_NAMES
    assert set(LIMITS["TEST.COCO_EVAL"].choices) == {AUTO, *BACKENDS}
    assert LIMITS["SOLVER.AMP"].choices == tuple(PRECISIONS)


def test_shipped_configurations_and_their_dumps_load(tmp_path):
    assert len(shipped_configs()) == 54
    for file in shipped_configs().values():
        cfg = load_cfg(file)
        written = tmp_path / "config.yml"
        written.write_text(cfg.dump())
        assert load_cfg(written).dump() == cfg.dump()


def test_loading_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    register = "DATASETS: {REGISTER: {mine: ~/a.json@~/images}}"
    (tmp_path / "base.yaml").write_text(f"OUTPUT_DIR: ~/runs\n{register}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: ~/base.yaml\nMODEL: {WEIGHT: ~/w.pth}\n")
    cfg = load_cfg("~/mine.yaml", ["DATASETS.DATA_DIR", "~/data", "DATASETS.TRAIN", "~/b.json@~/c"])
    assert f"{tmp_path}/runs" == cfg.OUTPUT_DIR
    assert f"{tmp_path}/w.pth" == cfg.MODEL.WEIGHT
    assert f"{tmp_path}/data" == cfg.DATASETS.DATA_DIR
    for name, annotations, images in (("mine", "a.json", "images"), (cfg.DATASETS.TRAIN[0], "b.json", "c")):
        entry = find_dataset(name, cfg.DATASETS.DATA_DIR, cfg.DATASETS.REGISTER)
        assert (entry.annotations, entry.images) == (tmp_path / annotations, tmp_path / images)
    assert load_cfg(opts=["OUTPUT_DIR", "~nobody_of_that_name/x"]).OUTPUT_DIR == "~nobody_of_that_name/x"


def test_freezing_and_checking_expand_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for make in (get_cfg, lambda: plain(get_cfg())):
        cfg = make()
        cfg.OUTPUT_DIR, cfg.MODEL.WEIGHT, cfg.DATASETS.DATA_DIR = "~/runs", "~/w.pth", "~/data"
        cfg.merge_from_list(["SOLVER.BASE_LR", 1.0])
        for node in (cfg, cfg.clone()):
            node.freeze()
            copy = checked(node)
            assert copy.is_frozen() == node.is_frozen()
            assert f"{tmp_path}/runs" == copy.OUTPUT_DIR
            assert f"{tmp_path}/w.pth" == copy.MODEL.WEIGHT
            assert f"{tmp_path}/data" == copy.DATASETS.DATA_DIR
    cfg = get_cfg()
    cfg.OUTPUT_DIR = "~/runs"
    cfg.freeze()
    assert f"{tmp_path}/runs" == cfg.OUTPUT_DIR


def test_plain_nodes_remember_given_keys_and_need_every_key():
    assert is_given(checked(load_cfg(opts=["MODEL.ATSS.NUM_CLASSES", "81"])), "MODEL.ATSS.NUM_CLASSES")
    cfg = plain(get_cfg())
    del cfg.SOLVER["BASE_LR"]
    with pytest.raises(ValueError, match=r"expected the key SOLVER\.BASE_LR, got none\. Start from get_cfg"):
        checked(cfg)
    del cfg["SOLVER"]
    with pytest.raises(ValueError, match=r"expected the key SOLVER\.\w+, got none"):
        checked(cfg)


NAMES = ["", " ", ".", "..", "../x", "a/b", "a\\b", "/a", "a\nb", "a\x1b[0m", "\udcff", "x" * 201, "ß" * 101]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_dataset_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(ValueError, match=r"^here: the name of a dataset becomes that of a folder"):
        check_dataset_name(name, "here")
    with pytest.raises(ValueError, match=r"^DATASETS\.REGISTER: the name"):
        find_dataset(name, "data", {name: "a.json@b"})
    message = refusal(lambda: load_cfg(opts=[f"DATASETS.REGISTER.{name}", "a.json@b"]))
    assert message.startswith("the command line: DATASETS.REGISTER: the name")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/cells/train.json@/data/images", "cells_train"),
        ("/data/../cells/x/..@train", "cells_train"),
        ("/", "dataset"),
        ("/@@@", "dataset"),
        ("/data/a b\\c\n/../..@..", "dataset"),
        (f"/{'x' * 250}/{'y' * 240}.json", "y" * 200),
        (f"/{'ß' * 120}/val.json", f"{'ß' * 98}_val"),
    ],
)
def test_the_default_name_of_a_dataset_path_suits_a_folder(path, name):
    entry = parse_dataset_path(path)
    assert entry.name == name
    check_dataset_name(entry.name, "here")
    assert (Path("results") / entry.name).parent == Path("results")
