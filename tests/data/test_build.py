import pytest
import torch

from atss_core.config import get_cfg, override
from atss_core.data import (
    build_datasets,
    build_test_loaders,
    build_train_dataset,
    build_train_loader,
    build_transform,
    fill_num_classes,
    write_shapes,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", num_train=10, num_val=5, progress=False)
    return root


@pytest.fixture
def cfg(data_dir):
    cfg = get_cfg()
    cfg.DATASETS.DATA_DIR = str(data_dir)
    cfg.DATASETS.TRAIN = ("shapes_train",)
    cfg.DATASETS.TEST = ("shapes_val",)
    cfg.MODEL.ATSS.NUM_CLASSES = 7
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80, 96)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 8
    cfg.TEST.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.SIZE_DIVISIBILITY = 32
    return cfg


def train_batches(cfg, **more):
    return list(build_train_loader(cfg, build_train_dataset(cfg), **more))


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images.tensors, other.images.tensors)
        for target, expected in zip(one.targets, other.targets, strict=True):
            assert torch.equal(target.boxes, expected.boxes)
            assert torch.equal(target.labels, expected.labels)


def test_batches_are_padded_and_consistent(cfg):
    for batch in train_batches(cfg):
        assert len(batch) == len(batch.targets) == len(batch.images) == 4
        assert all(side % 32 == 0 for side in batch.images.tensors.shape[2:])
        assert [target.image_size for target in batch.targets] == batch.images.image_sizes
        assert all(len(target) and target.labels.max() <= 6 for target in batch.targets)
        assert len({height < width for height, width in batch.images.image_sizes}) == 1
        assert batch.skipped == []


def test_number_of_workers_changes_nothing(cfg):
    alone = train_batches(cfg)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_equal(train_batches(cfg), alone)


def test_resuming_continues_with_the_same_batches(cfg):
    assert_equal(train_batches(cfg, start_iter=5), train_batches(cfg)[5:])


def test_seed_changes_the_batches(cfg):
    first = train_batches(cfg)
    cfg.SEED = 1
    assert [batch.image_ids for batch in train_batches(cfg)] != [batch.image_ids for batch in first]


def test_augmentation_of_an_image_varies_between_epochs(cfg):
    cfg.SOLVER.MAX_ITER = 20
    sizes = {}
    for batch in train_batches(cfg):
        for image_id, size in zip(batch.image_ids, batch.images.image_sizes, strict=True):
            sizes.setdefault(image_id, set()).add(size)
    assert max(map(len, sizes.values())) > 1


def test_processes_share_a_batch(cfg):
    whole = train_batches(cfg)
    ranks = [train_batches(cfg, rank=rank, world_size=2) for rank in range(2)]
    for batch, first, second in zip(whole, *ranks, strict=True):
        assert first.image_ids + second.image_ids == batch.image_ids


def test_several_training_sets_are_concatenated(cfg):
    cfg.DATASETS.TRAIN = ("shapes_train", "shapes_val")
    dataset = build_train_dataset(cfg)
    assert len(dataset) == 15
    assert dataset.class_names[0] == "circle"
    train, val = dataset.datasets
    for index, other in ((9, train[9]), (10, val[0]), (14, val[4])):
        assert torch.equal(dataset[index].image, other.image)
    assert len(train_batches(cfg)) == 8


def test_training_sets_of_different_classes_are_refused(cfg, monkeypatch):
    cfg.DATASETS.TRAIN = ("shapes_train", "shapes_val")
    datasets = build_datasets(cfg, training=True)
    datasets[1].class_names = datasets[1].class_names[::-1]
    monkeypatch.setattr("atss_core.data.build.build_datasets", lambda *args, **kwargs: datasets)
    with pytest.raises(ValueError, match=r"same classes.*shapes_train.*shapes_val.*DATASETS\.TRAIN"):
        build_train_dataset(cfg)


def test_test_loader_gives_every_image_once(cfg):
    (loader,) = build_test_loaders(cfg)
    assert loader.dataset.name == "shapes_val"
    ids = [image_id for batch in loader for image_id in batch.image_ids]
    assert sorted(ids) == loader.dataset.image_ids
    both = [build_test_loaders(cfg, rank=rank, world_size=2)[0] for rank in range(2)]
    assert sorted(i for loader in both for batch in loader for i in batch.image_ids) == sorted(ids)


@pytest.mark.parametrize("training", [True, False])
def test_num_classes_must_match_the_detector(cfg, training):
    cfg = override(cfg, "MODEL.ATSS.NUM_CLASSES", 81)
    message = (
        r"has 6 classes \(circle, square, triangle, \.\.\.\), which needs MODEL\.ATSS\.NUM_CLASSES 7 "
        r"\(classes \+ background\), but it is 81"
    )
    with pytest.raises(ValueError, match=message):
        build_datasets(cfg, training=training)


def test_num_classes_follows_from_the_data_unless_given(cfg):
    (dataset,) = build_datasets(cfg, training=True)
    cfg.MODEL.ATSS.NUM_CLASSES = 81
    assert fill_num_classes(cfg, dataset.class_names).MODEL.ATSS.NUM_CLASSES == 7
    given = override(cfg, "MODEL.ATSS.NUM_CLASSES", 9)
    assert fill_num_classes(given, dataset.class_names).MODEL.ATSS.NUM_CLASSES == 9
    assert cfg.MODEL.ATSS.NUM_CLASSES == 81


@pytest.mark.parametrize(("training", "key"), [(True, "TRAIN"), (False, "TEST")])
def test_empty_list_of_datasets_is_an_error(cfg, training, key):
    cfg.DATASETS[key] = ()
    with pytest.raises(ValueError, match=rf"DATASETS\.{key} must name"):
        build_datasets(cfg, training=training)


def test_batch_size_must_be_divisible_by_the_processes(cfg):
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH must be a positive multiple of the 3"):
        train_batches(cfg, world_size=3)


@pytest.mark.parametrize("world_size", [1, 3, 16])
def test_any_number_of_processes_evaluates_every_image_once(world_size, cfg):
    loaders = [build_test_loaders(cfg, rank=i, world_size=world_size)[0] for i in range(world_size)]
    batches = [batch for loader in loaders for batch in loader.batch_sampler]
    indices = sorted(key.index for batch in batches for key in batch)
    assert indices == list(range(len(loaders[0].dataset)))
    assert sum(loader.batch_sampler.num_images for loader in loaders) == len(indices)


def test_range_of_sizes(cfg):
    cfg.INPUT.MIN_SIZE_RANGE_TRAIN = (70, 72)
    assert list(build_transform(cfg, training=True).steps[0].min_sizes) == [70, 71, 72]


@pytest.mark.parametrize("limits", [(72, 70), (70,), (0, 5), (-1, 5)])
def test_bad_range_of_sizes(cfg, limits):
    cfg.INPUT.MIN_SIZE_RANGE_TRAIN = limits
    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE_RANGE_TRAIN"):
        build_transform(cfg, training=True)


def test_without_grouping_tall_and_wide_images_mix(cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    kinds = [len({h < w for h, w in batch.images.image_sizes}) for batch in train_batches(cfg)]
    assert 2 in kinds
