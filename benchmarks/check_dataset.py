"""How long does the check of a dataset take, and how much memory?

    python benchmarks/check_dataset.py

Writes sets of tiny objects to a temporary folder and runs ``tools/check_dataset.py`` on each, in a process
of its own: 20,000 objects on 100 images, and about as many as in COCO. The quick check, with which training
begins, reads the annotations and the list of files; the whole one reads and draws the images as well.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml"
# (images, objects, quick)
CASES = ((100, 20_000, True), (100, 20_000, False), (118_000, 860_000, True))
SIZE = (480, 640)


def write(folder, num_images, num_objects):
    """Write a COCO file, and its images as links to a single one."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    original = folder / "original.jpg"
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(original)
    images = []
    for i in range(num_images):
        name = f"{i:06}.jpg"
        os.symlink(original, folder / "images" / name)
        images.append({"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    corners = rng.integers(0, (SIZE[1] - 12, SIZE[0] - 12), (num_objects, 2))
    boxes = np.concatenate([corners, rng.integers(4, 12, (num_objects, 2))], axis=1).tolist()
    annotations = [
        {"id": i, "image_id": i % num_images, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(tree))
    return f"{folder / 'train.json'}@{folder / 'images'}"


def measure(words):
    """Run the check in a process of its own; returns seconds and the largest memory so far in MB."""
    command = [sys.executable, str(ROOT / "tools" / "check_dataset.py"), "--config-file", str(CONFIG), *words]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main():
    """Measure each case and print a table."""
    print(f"torch {torch.__version__}; seconds and memory include the start of Python and PyTorch")
    print("| images | objects | part | seconds | peak MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (num_images, num_objects, quick) in enumerate(CASES):
            place = write(Path(folder) / str(number), num_images, num_objects)
            flags = ["--output-dir", str(Path(folder) / "check"), *(["--quick"] if quick else [])]
            seconds, megabytes = measure([*flags, place])
            part = "quick" if quick else "all"
            print(f"| {num_images} | {num_objects} | {part} | {seconds:.1f} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
