"""Can it learn? Train the quick model on 16 real images and test it on the same 16.

    python benchmarks/overfit.py [KEY VALUE ...]

Needs COCO in ``datasets/coco`` (any part of it: the first 16 images with objects are taken). Writes a data
set of these images, the run and an image of its detections to ``training_dir/overfit``.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from atss_core.apps.quickstart import draw_detections
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.config.catalog import find_dataset
from atss_core.data.datasets.coco import read_coco_json
from atss_core.engine import train_detector
from atss_core.utils.env import choose_device
from atss_core.utils.files import atomic_write

CONFIG = "configs/quick/atss_R_18_coco.yaml"
FOLDER = Path("training_dir/overfit")
NUM_IMAGES = 16


def write_subset(data_dir, folder):
    """Write the first images with objects as training and as test set, in COCO's layout."""
    entry = find_dataset("coco_2017_train", data_dir)
    content = read_coco_json(entry.name, entry.annotations)
    with_objects = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    images = [image for image in content["images"] if image["id"] in with_objects][:NUM_IMAGES]
    ids = {image["id"] for image in images}
    subset = {
        "images": images,
        "categories": content["categories"],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
    for split in ("train", "val"):
        target = find_dataset(f"coco_2017_{split}", folder)
        target.images.parent.mkdir(parents=True, exist_ok=True)
        if not target.images.exists():
            target.images.symlink_to(entry.images.resolve())
        with atomic_write(target.annotations, "w") as file:
            json.dump(subset, file)


def main(argv=None):
    """Write the subset, train, test, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    opts = parser.parse_args(argv).opts
    shutil.rmtree(FOLDER, ignore_errors=True)  # an earlier run would be resumed, and the time be wrong
    write_subset(load_cfg(CONFIG, opts).DATASETS.DATA_DIR, FOLDER / "data")
    fixed = ["DATASETS.DATA_DIR", str(FOLDER / "data"), "OUTPUT_DIR", str(FOLDER)]
    cfg = load_cfg(CONFIG, ["INPUT.HORIZONTAL_FLIP_PROB_TRAIN", "0.0", *opts, *fixed])
    start = time.perf_counter()
    metrics = train_detector(cfg)["coco_2017_val"]
    minutes = (time.perf_counter() - start) / 60
    title = f"{NUM_IMAGES} images, trained and tested on"
    draw_detections(cfg, FOLDER / "detections.png", NUM_IMAGES, title)
    draw_detections(cfg, FOLDER / "boxes.png", 4, title, blank=True)
    found = metrics.overall
    print(f"torch {torch.__version__}, {choose_device(cfg.MODEL.DEVICE)}, {torch.get_num_threads()} threads")
    print(
        f"AP {found['AP']:.3f}, AP50 {found['AP50']:.3f} on {NUM_IMAGES} images after "
        f"{cfg.SOLVER.MAX_ITER} iterations, {minutes:.1f} min; see {FOLDER / 'detections.png'}"
    )


if __name__ == "__main__":
    run(main)
