"""A training of one step on data of one's own."""

from tests.conftest import TINY
from tests.golden import ROOT

CONFIG = str(ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml")
ONE_STEP = [
    *TINY,
    *("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "(1,)", "INPUT.MIN_SIZE_RANGE_TRAIN", "(48, 48)"),
    *("INPUT.MIN_SIZE_TEST", "48"),
]


def dataset_overrides(paths, folder):
    return ["DATASETS.TRAIN", paths[0], "DATASETS.TEST", paths[1], "OUTPUT_DIR", str(folder)]
