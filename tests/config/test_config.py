import pytest
import yaml

from atss_core.config import get_cfg, load_cfg
from atss_core.config.catalog import find_dataset, find_weights
from tests.golden import ROOT, numbers

CONFIGS = numbers("configs")
# Defaults that differ on purpose: the published code always uses CUDA.
OWN_DEFAULTS = {"MODEL.DEVICE": "auto"}


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(node, key):
    for name in key.split("."):
        node = node[name]
    return list(node) if isinstance(node, tuple) else node


@pytest.mark.parametrize(("key", "value"), list(flatten(CONFIGS["defaults"])))
def test_defaults_equal_the_published_ones(key, value):
    assert value_of(get_cfg(), key) == OWN_DEFAULTS.get(key, value)


@pytest.mark.parametrize("name", CONFIGS["configs"])
def test_published_yaml_files_load_with_their_values(name):
    file = ROOT / "configs" / "atss" / name
    assert yaml.safe_load(file.read_text()) == CONFIGS["configs"][name]
    cfg = load_cfg(file)
    for key, value in flatten(CONFIGS["configs"][name]):
        assert value_of(cfg, key) == value


def test_two_configurations_share_no_values():
    first, second = get_cfg(), get_cfg()
    first.INPUT.PIXEL_MEAN[0] = 0.0
    first.MODEL.ATSS.TOPK = 1
    assert second.INPUT.PIXEL_MEAN[0] == 102.9801
    assert second.MODEL.ATSS.TOPK == 9


def test_a_loaded_configuration_is_frozen():
    with pytest.raises(AttributeError, match="immutable"):
        load_cfg().SEED = 1


def test_values_are_converted_to_the_type_of_the_default():
    cfg = load_cfg(opts=["SOLVER.BASE_LR", "1", "INPUT.MIN_SIZE_TRAIN", "[640, 800]", "OUTPUT_DIR", "here"])
    assert cfg.SOLVER.BASE_LR == 1.0
    assert isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 800)
    assert cfg.OUTPUT_DIR == "here"


def test_a_level_may_have_several_anchor_sizes():
    cfg = load_cfg(opts=["MODEL.ATSS.ANCHOR_SIZES", "((32, 45.5), 64)"])
    assert cfg.MODEL.ATSS.ANCHOR_SIZES == ((32.0, 45.5), 64)
    with pytest.raises(ValueError, match=r"ANCHOR_SIZES\[0\] must be a number"):
        load_cfg(opts=["MODEL.ATSS.ANCHOR_SIZES", "((32, 'b'), 64)"])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["SOLVER.BASE_RL", "1"],
            "the command line: unknown key SOLVER.BASE_RL; did you mean SOLVER.BASE_LR",
        ),
        (["MODEL.TOPK", "9"], "did you mean MODEL.ATSS.TOPK"),
        (["SOLVER.BASE_LR"], "in pairs KEY VALUE, but there are 1 arguments, the last is 'SOLVER.BASE_LR'"),
        (["MODEL.ATSS", "3"], "MODEL.ATSS is a section"),
        (["MODEL.ATSS.TOPK", "9.5"], r"MODEL.ATSS.TOPK must be a whole number, such as 9, got 9.5 \(float\)"),
        (["MODEL.ATSS.TOPK", "True"], "must be a whole number"),
        (["MODEL.ATSS_ON", "1"], "must be True or False"),
        (["INPUT.MIN_SIZE_TRAIN", "800"], "must be a list with elements like 800"),
        (["INPUT.MIN_SIZE_TRAIN", "(1, 'a')"], r"INPUT.MIN_SIZE_TRAIN\[1\] must be a whole number"),
    ],
)
def test_an_invalid_override_is_an_error_with_a_remedy(opts, message):
    with pytest.raises(ValueError, match=message):
        load_cfg(opts=opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "MODEL:\n  ATTS:\n    TOPK: 3\n",
            "mine.yaml: unknown key MODEL.ATTS.TOPK; did you mean MODEL.ATSS.TOPK",
        ),
        ("SOLVER:\n  MAX_ITER: many\n", "mine.yaml: SOLVER.MAX_ITER must be a whole number"),
        ("SOLVER: [", "mine.yaml is not valid YAML"),
        ("- 1\n", "must hold sections"),
    ],
)
def test_an_invalid_file_is_an_error_that_names_it(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_cfg(file)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*none.yaml"):
        load_cfg(tmp_path / "none.yaml")


def test_the_catalog_finds_paths_and_suggests_names():
    assert find_dataset("coco_2017_val", "data").annotations.as_posix() == (
        "data/coco/annotations/instances_val2017.json"
    )
    with pytest.raises(ValueError, match="did you mean coco_2017_val"):
        find_dataset("coco_2017_vla", "data")
    assert find_weights("ImageNetPretrained/MSRA/R-50").endswith("MSRA/R-50.pkl")
    with pytest.raises(ValueError, match="unknown weights catalog://R-50"):
        find_weights("R-50")
