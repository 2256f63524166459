r"""The paper's claim in miniature: the same training but for how positives are chosen.

    python benchmarks/assignment_study.py [--data PLACE] [--config-file FILE] [--seeds N] [KEY VALUE ...]

Trains on ``PLACE@trainval`` and tests on ``PLACE@test`` with POSITIVE_TYPE ATSS, SSC and IoU, each with N
seeds, by the command that a user would run, and prints mean and spread of AP, AP50 and AP75. Runs lie in
``training_dir/assignment_study``; those that are there already are not repeated, so a study that was stopped
goes on. By default the blood cells of BCCD in ``datasets/bccd`` and the quick model; with a GPU for instance

    python benchmarks/assignment_study.py --seeds 5 --config-file configs/atss/atss_R_50_FPN_1x.yaml \
        SOLVER.MAX_ITER 2000 SOLVER.STEPS "(1400, 1800)" SOLVER.IMS_PER_BATCH 8 SOLVER.BASE_LR 0.005
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.config.catalog import parse_dataset_path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/quick/atss_R_18_own_data.yaml"
FOLDER = Path("training_dir/assignment_study")
TYPES = ("ATSS", "SSC", "IoU")
METRICS = ("AP", "AP50", "AP75")


def train_and_test(config, place, positive_type, seed, opts):
    """Run the training command, unless it has finished before, and return the metrics."""
    settings = hashlib.sha256("\n".join([Path(config).read_text(), place, *opts]).encode()).hexdigest()[:8]
    folder = FOLDER / f"{Path(config).stem}_{settings}" / f"{positive_type}_{seed}"
    test_set = f"{place}@test"
    name = parse_dataset_path(test_set).name
    metrics = folder / "inference" / name / "metrics.json"
    if not metrics.is_file():
        words = ["DATASETS.TRAIN", f"{place}@trainval", "DATASETS.TEST", test_set, *opts]
        words += ["MODEL.ATSS.POSITIVE_TYPE", positive_type, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", config, *words]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "w", encoding="utf-8") as output:
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            raise ValueError(f"{' '.join(command)} ended with status {status}; see {folder / 'output.txt'}")
    return json.loads(metrics.read_text())["overall"]


def row(name, cells):
    """Return a line of a table in Markdown."""
    return f"| {' | '.join([name, *cells])} |"


def main(argv=None):
    """Train, test and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="datasets/bccd", metavar="PLACE")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    arguments = parser.parse_args(argv)
    cfg = load_cfg(arguments.config_file, arguments.opts)
    runs = [(positive_type, seed) for seed in range(arguments.seeds) for positive_type in TYPES]
    found = {
        each: train_and_test(arguments.config_file, arguments.data, *each, arguments.opts)
        for each in tqdm(runs, unit="run", disable=None)
    }
    print(f"torch {torch.__version__}, {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images")
    print(row("POSITIVE_TYPE", [f"{metric} (mean +- standard deviation; each seed)" for metric in METRICS]))
    print(row("---", ["---"] * len(METRICS)))
    for positive_type in TYPES:
        cells = []
        for metric in METRICS:
            values = [100 * found[positive_type, seed][metric] for seed in range(arguments.seeds)]
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            each = ", ".join(f"{value:.1f}" for value in values)
            cells.append(f"{statistics.mean(values):.1f}{spread} ({each})")
        print(row(positive_type, cells))


if __name__ == "__main__":
    run(main)
