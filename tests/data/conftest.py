import json

import numpy as np
import pytest
from PIL import Image

from atss_core.config.catalog import DatasetEntry
from atss_core.data import DetectionDataset
from atss_core.data.transforms import Compose, Normalize, Resize


class CocoFolder:
    """A small dataset on disk: write images, change the JSON, open it."""

    def __init__(self, root):
        self.images = root / "images"
        self.images.mkdir()
        self.json = root / "annotations.json"
        self.tree = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}]}

    def add_image(self, *boxes, size=(40, 60), image=None, name=None, **annotation):
        """Add an image of (height, width) with boxes (x, y, width, height); returns its id."""
        image_id = len(self.tree["images"]) + 1
        name = name or f"{image_id}.png"
        if image is None:
            noise = np.random.default_rng(image_id).integers(0, 256, (*size, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
        image.save(self.images / name)
        entry = {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}
        self.tree["images"].append(entry)
        for box in boxes:
            self.add_box(image_id, box, **annotation)
        return image_id

    def add_box(self, image_id, box, category_id=7, **annotation):
        number = 100 + len(self.tree["annotations"])
        self.tree["annotations"].append(
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, **annotation}
        )
        return number

    def open(self, training=False, skip_corrupt=False, transform=None, **options):
        self.json.write_text(json.dumps(self.tree))
        return self.reopen(training, skip_corrupt, transform, **options)

    def reopen(self, training=False, skip_corrupt=False, transform=None, **options):
        return DetectionDataset(
            DatasetEntry("little", self.images, self.json),
            transform=transform or Compose([Resize([32], 64)], Normalize([0, 0, 0], [1, 1, 1], True)),
            training=training,
            skip_corrupt=skip_corrupt,
            **options,
        )


@pytest.fixture
def folder(tmp_path):
    return CocoFolder(tmp_path)
