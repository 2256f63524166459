"""Own data through the commands of a user, faulty data in particular."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.cli import assign, check, datasets, demo, train
from atss_core.cli import evaluate as test
from atss_core.cli.common import run
from tests.apps.pages import check_self_contained
from tests.cli.faults import CASES, edit, in_annotation, truncate
from tests.cli.own_data import CONFIG, ONE_STEP, dataset_overrides
from tests.dataset_formats import CONTENT, coco_tree, write_coco, write_images, write_voc, write_yolo
from tests.golden import ROOT


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_any_format_trains_tests_and_draws(write, tmp_path, capsys):
    paths = write(tmp_path / "my data", names=["große Katze", "dog"])
    folder = tmp_path / "run"
    train.main(["--config-file", CONFIG, *ONE_STEP, *dataset_overrides(paths, folder)])
    names = read_checkpoint(folder / "model_final.pth")["class_names"]
    assert sorted(names) == ["dog", "große Katze"]
    assert "NUM_CLASSES: 3" in (folder / "config.yml").read_text()
    (metrics,) = (folder / "inference").glob("*/metrics.json")
    content = json.loads(metrics.read_text())
    assert content["per_class"].keys() == set(names)
    assert ("voc" in content) == (write is write_voc)
    output = capsys.readouterr().out
    assert ("by the 11 points of 2007" in output) == (write is write_voc)

    # Neither testing nor the demo needs to be told the number of classes.
    test.main(["--config-file", CONFIG, *ONE_STEP, *dataset_overrides(paths, folder)])
    write_images(tmp_path / "new")
    flags = ["--weights", str(folder / "model_final.pth"), "--images-dir", str(tmp_path / "new")]
    demo.main([*flags, "--output-dir", str(tmp_path / "drawn"), "--config-file", CONFIG, *ONE_STEP])
    assert len(list((tmp_path / "drawn").iterdir())) == len(CONTENT)


def test_registered_names(tmp_path):
    paths = write_coco(tmp_path / "data")
    config = tmp_path / "own.yaml"
    config.write_text(
        f"_BASE_: {CONFIG}\nDATASETS:\n  REGISTER:\n    my_train: {paths[0]}\n    my_val: {paths[1]}\n"
        "  TRAIN: [my_train]\n  TEST: my_val\n"
    )
    train.main(["--config-file", str(config), *ONE_STEP, "OUTPUT_DIR", str(tmp_path / "run")])
    assert (tmp_path / "run" / "inference" / "my_val" / "metrics.json").is_file()
    dumped = tmp_path / "run" / "config.yml"  # loads again, names and all
    test.main(["--config-file", str(dumped)])


def test_empty_images_train_on_demand(tmp_path):
    paths = write_coco(tmp_path / "data", content={**CONTENT, "e": [], "f": [], "g": [], "h": []})
    opts_of_data = dataset_overrides(paths, tmp_path / "run")
    opts = [*ONE_STEP, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SOLVER.IMS_PER_BATCH", "8"]
    train.main(["--config-file", CONFIG, "--skip-test", *opts, *opts_of_data])
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(line)["loss"])


def lines_with(fragments, text):
    return [line for line in text.splitlines() if all(fragment in line for fragment in fragments)]


@pytest.mark.parametrize(
    ("write", "spoil", "fragments"),
    [(write, spoil, fragments) for write, _, spoil, fragments in CASES],
    ids=[f"{write.__name__[6:]}: {name}" for write, name, _, _ in CASES],
)
def test_each_defect_has_one_line_in_the_check_and_in_training(write, spoil, fragments, tmp_path, capsys):
    folder = tmp_path / "data"
    paths = write(folder)
    more = spoil(folder)
    opts = [*ONE_STEP, *(more if isinstance(more, list) else [])]
    commands = {
        "check": (check.main, ["--output-dir", str(tmp_path / "check"), *paths, *opts]),
        "training": (train.main, ["--skip-test", *opts, *dataset_overrides(paths, tmp_path / "run")]),
    }
    if "must have the classes of" in fragments:  # which takes both sets
        commands["training"][1].remove("--skip-test")
    for name, (command, arguments) in commands.items():
        status = 0
        try:
            run(command, ["--config-file", CONFIG, *arguments])
        except SystemExit as stop:
            status = stop.code
        assert status in (0, 2), name
        printed = capsys.readouterr()
        assert lines_with(fragments, printed.out + printed.err), f"{name} says {printed.out + printed.err}"
        assert "Traceback" not in printed.out + printed.err, name
        assert printed.err.count("\n") <= 1, f"{name} says {printed.err}"


def test_sound_data_is_found_sound(tmp_path, capsys):
    check.main([*write_coco(tmp_path / "data"), "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    output = capsys.readouterr().out
    assert output.count("nothing wrong was found") == 1
    assert "- 4 images of data_val are in data_train as well" in output
    assert f"report and images: {tmp_path / 'check' / 'data_train' / 'index.html'}\n" in output
    report = json.loads((tmp_path / "check" / "data_train" / "report.json").read_text())
    assert report["objects"] == {"cat": 3, "dog": 3}
    assert report["num_images"] == 4
    assert sum(report["sides"].values()) == 6
    assert report["defects"] == []
    folder = tmp_path / "check" / "data_train"
    page = check_self_contained((folder / "index.html").read_text(), folder)
    assert "Nothing wrong was found" in page.text
    assert [image["src"] for image in page.images] == ["objects.png", "sample.jpg"]
    for name in ("objects.png", "sample.jpg"):
        assert min(Image.open(tmp_path / "check" / "data_train" / name).size) > 200
    assert not (tmp_path / "check" / "data_train" / "defects.jpg").exists()


def test_images_of_two_datasets_are_a_warning_of_the_later_one(tmp_path, capsys):
    paths = write_coco(tmp_path / "data")
    (tmp_path / "data" / "train.json").write_text(
        json.dumps(coco_tree(content={k: CONTENT[k] for k in "ac"}))
    )
    check.main([*paths, "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    message = "2 images of data_val are in data_train as well, such as a.png"
    assert capsys.readouterr().out.count(message) == 1
    train_folder, val_folder = (tmp_path / "check" / f"data_{split}" for split in ("train", "val"))
    (defect,) = json.loads((val_folder / "report.json").read_text())["defects"]
    assert (defect["kind"], defect["images"]) == ("images of two datasets", ["a.png", "c.png"])
    assert not defect["is_fatal"]
    page = check_self_contained((val_folder / "index.html").read_text(), val_folder)
    assert message in page.text
    assert "defects.jpg" in page.addresses
    assert json.loads((train_folder / "report.json").read_text())["defects"] == []


def test_defects_are_drawn_and_listed(tmp_path, capsys):
    paths = write_coco(tmp_path / "data")
    in_annotation(bbox=[5, 5, 0, 30])(tmp_path / "data")
    truncate(tmp_path / "data")
    with pytest.raises(ValueError, match="1 of 4 images cannot be read"):
        check.main([paths[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    folder = tmp_path / "check" / "data_train"
    assert min(Image.open(folder / "defects.jpg").size) > 200
    defects = json.loads((folder / "report.json").read_text())["defects"]
    assert [(d["kind"], d["images"], d["annotation_ids"]) for d in defects] == [
        ("boxes without area", ["a.png"], [2]),
        ("unreadable images", ["a.png"], []),
    ]
    page = check_self_contained((folder / "index.html").read_text(), folder)
    assert "! unreadable images" in page.text
    assert "1 of 4 images cannot be read" in page.text
    assert "defects.jpg" in page.addresses
    assert "! 1 of 4 images cannot be read" in capsys.readouterr().out


def test_unmatched_objects_are_counted_and_listed(tmp_path, capsys):
    # Two objects of one position and size: the second finds all its anchors taken.
    content = {"a": [(0, 10, 10, 30, 30), (1, 10, 10, 30, 30)], "b": CONTENT["b"]}
    paths = write_coco(tmp_path / "data", content=content)
    check.main([paths[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    assert "1 of 3 objects are unmatched (POSITIVE_TYPE ATSS gives them no anchor)" in capsys.readouterr().out
    (defect,) = json.loads((tmp_path / "check" / "data_train" / "report.json").read_text())["defects"]
    found = defect["kind"], defect["images"], defect["annotation_ids"]
    assert found == ("unmatched objects", ["a.png"], [2])


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (check, "sample.jpg"),
        (check, "defects.jpg"),
        (check, "index.html"),
        (assign, "images/1_assigners.jpg"),
    ],
)
def test_data_is_never_written_over_or_removed(command, output, tmp_path, capsys):
    paths = write_coco(tmp_path / "data")
    image = next((tmp_path / "data").rglob("a.png"))
    before = image.read_bytes()
    file = tmp_path / "out" / "data_train" / output
    file.parent.mkdir(parents=True)
    os.link(image, file)  # as if the folders were one
    with pytest.raises(ValueError, match=rf"{output} would be overwritten: .* Give another --output-dir"):
        command.main([paths[0], "--output-dir", str(tmp_path / "out"), *ONE_STEP])
    assert file.samefile(image)
    assert image.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert capsys.readouterr().out == ""


def test_quick_check_reads_no_image(tmp_path, capsys):
    paths = write_coco(tmp_path / "data")
    truncate(tmp_path / "data")
    check.main(["--quick", paths[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    assert "nothing wrong was found" in capsys.readouterr().out


def test_gaps_in_category_ids(tmp_path):
    def spread(tree):
        for entry in (*tree["categories"], *tree["annotations"]):
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = {1: 7, 2: 901}[entry[key]]

    paths = write_coco(tmp_path / "data")
    for split in ("train", "val"):
        edit(tmp_path / "data" / f"{split}.json", spread)
    opts = [*ONE_STEP, "MODEL.ATSS.INFERENCE_TH", "0.0"]
    train.main(["--config-file", CONFIG, *opts, *dataset_overrides(paths, tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "inference" / "data_val" / "bbox.json").read_text())
    assert {result["category_id"] for result in results} == {7, 901}


def test_null_fields_and_ignore_regions_train_and_evaluate(tmp_path, capsys):
    def change(tree):
        for annotation in tree["annotations"]:
            annotation.update(area=None, iscrowd=None, ignore=None)
        tree["annotations"][1]["ignore"] = 1

    paths = write_coco(tmp_path / "data")
    for split in ("train", "val"):
        edit(tmp_path / "data" / f"{split}.json", change)
    check.main([paths[0], "--output-dir", str(tmp_path / "check"), *ONE_STEP])
    output = capsys.readouterr().out
    assert "5 objects of 2 class(es), at most 2 in an image; 1 crowds or ignore regions" in output
    assert "nothing wrong was found" in output
    for library in ("pycocotools", "auto"):
        opts_of_data = [*dataset_overrides(paths, tmp_path / library), "TEST.COCO_EVAL", library]
        train.main(["--config-file", CONFIG, *ONE_STEP, *opts_of_data])
        (page,) = (tmp_path / library / "inference").glob("*/report.html")
        assert "4 images, 5 objects of 2 classes" in page.read_text()
        assert min(json.loads((page.parent / "metrics.json").read_text())["per_class"].values()) >= 0


def test_twenty_thousand_objects(tmp_path, capsys):
    folder = tmp_path / "data"
    content = {f"{i:03}": [] for i in range(100)}
    rng = np.random.default_rng(0)
    corners = rng.integers(0, (480 - 12, 640 - 12), (20000, 2))
    sides = rng.integers(4, 12, (20000, 2))
    for i, ((y, x), (h, w)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True)):
        content[f"{i % 100:03}"].append((i % 2, x, y, w, h))
    write_images(folder / "images", content, size=(480, 640), suffix=".jpg")
    tree = coco_tree(content=content, size=(480, 640), suffix=".jpg")
    (folder / "train.json").write_text(json.dumps(tree))
    path = f"{folder / 'train.json'}@{folder / 'images'}"
    check.main([path, "--config-file", CONFIG, "--output-dir", str(tmp_path / "check")])
    report = json.loads((tmp_path / "check" / "data_train" / "report.json").read_text())
    assert sum(report["objects"].values()) == 20000
    assert sum(report["sides"].values()) == 20000
    kinds = {defect["kind"] for defect in report["defects"]}
    assert {"objects that no anchor size fits", "unmatched objects"} <= kinds
    assert "20000 objects of 2 class(es), at most 200 in an image" in capsys.readouterr().out


def test_datasets_and_overrides_of_the_command_line():
    split = datasets.split_arguments
    assert split(["a.json@b", "c@d", "INPUT.MIN_SIZE_TEST", "9"]) == (
        ["a.json@b", "c@d"],
        ["INPUT.MIN_SIZE_TEST", "9"],
    )
    assert split(["VOC2007@train", "SEED", "3"]) == (["VOC2007@train"], ["SEED", "3"])
    registered = ["DATASETS.REGISTER.my.own", "a.json@b"]
    assert split(["my.own", *registered]) == (["my.own"], registered)
    assert split([]) == ([], [])


def test_check_without_data_says_how_to_give_some(capsys):
    with pytest.raises(SystemExit):
        run(check.main, ["--config-file", CONFIG])
    assert (
        "there is no dataset to look at: give its path, such as train.json@images" in capsys.readouterr().err
    )


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    output = capsys.readouterr().out
    assert "folder@split" in output
    assert "example:" in output


@pytest.mark.parametrize("name", ["bccd", "coco_tiny"])
def test_real_data_goes_through_the_check(name, tmp_path, capsys):
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs the dataset {name} beside the checkout")
    path = {
        "bccd": f"{folder}@test",
        "coco_tiny": f"{folder}/annotations/instances_val2017.json@{folder}/val2017",
    }[name]
    check.main([path, "--output-dir", str(tmp_path), "--config-file", CONFIG])
    output = capsys.readouterr().out
    expected = {"bccd": "72 images of 640x480", "coco_tiny": "80 class(es)"}[name]
    assert expected in output
    assert next(tmp_path.glob("*/sample.jpg")).is_file()
