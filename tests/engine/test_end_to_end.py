"""From COCO images to COCO numbers, against the published evaluation loop; needs the images."""

import json

import pytest
import torch

from atss_core.config import load_cfg
from atss_core.data import build_test_loaders
from atss_core.engine.evaluate import Evaluation
from atss_core.engine.inference import SingleScale
from atss_core.evaluation import CocoEvaluator
from atss_core.structures import BoxList
from atss_core.structures.boxes import from_xywh
from tests import golden

pytestmark = golden.needs_coco_tiny
E2E = golden.numbers("e2e")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The ten images of the golden run, as coco_2017_val."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "coco" / "annotations").mkdir(parents=True)
    source = golden.SHARED / "coco_tiny"
    (folder / "coco" / "val2017").symlink_to(source / "val2017")
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    for section, key in (("images", "id"), ("annotations", "image_id")):
        content[section] = [entry for entry in content[section] if entry[key] in E2E["image_ids"]]
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_to_detections_to_numbers(batch_size, data_dir, tmp_path):
    expected = E2E["runs"][f"ims_per_batch_{batch_size}"]
    cfg = load_cfg(
        golden.ROOT / "configs" / "atss" / "atss_R_50_FPN_1x.yaml",
        [
            *("DATASETS.DATA_DIR", str(data_dir), "TEST.IMS_PER_BATCH", str(batch_size)),
            *("INPUT.MIN_SIZE_TEST", str(E2E["min_size_test"]), "DATALOADER.NUM_WORKERS", "0"),
        ],
    )
    (loader,) = build_test_loaders(cfg)
    assert [
        [loader.dataset.image_ids[key.index] for key in batch] for batch in loader.batch_sampler
    ] == expected["batches"]
    detector = golden.detector("atss_R_50_FPN_1x")
    Evaluation(SingleScale(detector, torch.device("cpu")), [loader], tmp_path).run()
    results = json.loads((tmp_path / loader.dataset.name / "bbox.json").read_text())
    by_image = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)

    assert {str(i): len(detections) for i, detections in by_image.items()} == expected["count"]
    for image_id, published in expected["first20"].items():
        check_same_detections(published, by_image[int(image_id)])
    metrics = synthetic_metrics(by_image)
    for name, value in expected["metrics_synthetic_gt"].items():
        assert metrics[name] == pytest.approx(value, abs=5e-3), name


def check_same_detections(published, detections):
    """Each published detection has a counterpart of its class with nearly the same box and score."""
    boxes = torch.tensor([d["bbox"] for d in detections])
    labels = torch.tensor([d["category_id"] for d in detections])
    scores = torch.tensor([d["score"] for d in detections])
    for detection in published:
        distance = (boxes - torch.tensor(detection["bbox"])).abs().amax(dim=1)
        distance[labels != detection["category_id"]] = torch.inf
        nearest = distance.argmin()
        assert distance[nearest] < 0.2
        assert abs(scores[nearest] - detection["score"]) < 1e-3


def synthetic_metrics(by_image):
    """Measure against the golden run's own jittered detections."""
    ground_truth = golden.numbers("e2e_synth_gt")
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    categories = sorted(category["id"] for category in ground_truth["categories"])
    evaluator = CocoEvaluator(ground_truth, categories, [str(c) for c in categories], list(sizes))
    from_coco = {category: label for label, category in enumerate(categories, start=1)}
    for image_id, detections in by_image.items():
        evaluator.process(image_id, to_box_list(detections, sizes[image_id], from_coco))
    return evaluator.evaluate().overall


def to_box_list(detections, size, from_coco):
    return BoxList(
        from_xywh(torch.tensor([d["bbox"] for d in detections])),
        size,
        labels=torch.tensor([from_coco[d["category_id"]] for d in detections]),
        scores=torch.tensor([d["score"] for d in detections]),
    )
