"""ImageNet backbones of torchvision and timm, and unknown names."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from atss_core.checkpoint.weights import load_initial_weights
from atss_core.config.catalog import TIMM_URL
from atss_core.structures.pixel_format import CAFFE2_PIXELS, TORCHVISION_PIXELS, PixelFormat
from tests.checkpoint.backbones import Model, assert_same, make_classifier, stages

BACKBONE_NAMES = {
    "resnet18": {"depth": 18},
    "resnet50": {"depth": 50, "stride_in_1x1": False},
    "resnext50_32x4d": {"depth": 50, "stride_in_1x1": False, "groups": 32, "width_per_group": 4},
}


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_backbone_of_torchvision_gives_its_features(name, tmp_path, caplog):
    classifier = make_classifier(name)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    images = torch.rand(1, 3, 64, 96)
    trainable = Model(**BACKBONE_NAMES[name], norm=nn.BatchNorm2d)
    load_initial_weights(trainable, str(tmp_path / "classifier.pth"), pixels=CAFFE2_PIXELS)
    assert_same(trainable(images), stages(classifier, images))
    assert 'torchvision want INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "[0.485, 0.456, 0.406]"' in caplog.text

    # A fixed batch norm computes the same in another order, so rounding differs.
    fixed = Model(**BACKBONE_NAMES[name])
    load_initial_weights(fixed, str(tmp_path / "classifier.pth"))
    features = zip(fixed.double()(images.double()), stages(classifier.double(), images.double()), strict=True)
    for actual, expected in features:
        # The sum of variance and epsilon is kept in float32.
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("shift", [0, 1e-6])
def test_pixels_of_torchvision_need_no_warning(resnet18, tmp_path, caplog, shift):
    save_file(resnet18.state_dict(), tmp_path / "classifier.safetensors")
    rounded = PixelFormat((0.485 + shift, 0.456, 0.406), TORCHVISION_PIXELS.std, is_bgr255=False)
    load_initial_weights(Model(18), str(tmp_path / "classifier.safetensors"), pixels=rounded)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_classifier_wrapped_as_its_training_script_does(resnet18, tmp_path):
    torch.save({"state_dict": resnet18.state_dict(), "epoch": 3}, tmp_path / "wrapped.pth.tar")
    model = Model(18, norm=nn.BatchNorm2d)
    load_initial_weights(model, str(tmp_path / "wrapped.pth.tar"))
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))


def test_deformable_convolution_gets_the_weights_of_the_plain_one(tmp_path):
    classifier = torchvision.models.resnet50()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    model = Model(stride_in_1x1=False, deformable=(False, False, False, True))
    load_initial_weights(model, str(tmp_path / "classifier.pth"))
    convolution = model.backbone.body.layer4[0].conv2
    assert torch.equal(convolution.conv.weight, classifier.layer4[0].conv2.weight)
    assert not convolution.offset.weight.any()
    with pytest.raises(ValueError, match=r"in the 1x1; add MODEL.RESNETS.STRIDE_IN_1X1 False$"):
        load_initial_weights(Model(), str(tmp_path / "classifier.pth"))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.IMAGENET1K_V1"])
def test_torchvision_name(name, resnet18, cache):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.save(resnet18.state_dict(), cache(weights.url))
    model = Model(18, norm=nn.BatchNorm2d)
    load_initial_weights(model, f"torchvision://{name}", pixels=TORCHVISION_PIXELS)
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))
    with pytest.raises(ValueError, match=r"trained with RGB pixels in 0..1") as error:
        load_initial_weights(model, f"torchvision://{name}", pixels=CAFFE2_PIXELS)
    assert str(error.value).endswith(
        'add INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "[0.485, 0.456, 0.406]" '
        'INPUT.PIXEL_STD "[0.229, 0.224, 0.225]"'
    )


def test_timm_name(resnet18, cache):
    name = "resnet18.a1_in1k"
    save_file(resnet18.state_dict(), cache(TIMM_URL.format(name=name, file="model.safetensors")))
    description = cache(TIMM_URL.format(name=name, file="config.json"))
    description.write_text(json.dumps({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}))
    model = Model(18, norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r'add INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "\[0.5, 0.5, 0.5\]"'):
        load_initial_weights(model, f"timm://{name}", pixels=TORCHVISION_PIXELS)
    load_initial_weights(model, f"timm://{name}", pixels=PixelFormat((0.5,) * 3, (0.5,) * 3, is_bgr255=False))
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))
    description.write_text("{}")
    with pytest.raises(
        ValueError, match=r"under pretrained_cfg in .*config.json; remove .*config.json to download it"
    ):
        load_initial_weights(model, f"timm://{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision://resnet51",
            r"expected torchvision://NAME with one of resnet18, .*got torchvision://re",
        ),
        ("torchvision://resnet18.V7", r"no V7 of resnet18; use torchvision://resnet18.IMAGENET1K_V1"),
        ("timm://resnet50", r"such as timm://resnet50.a1_in1k, got timm://resnet50$"),
        ("timm://resnetaa50.a1h_in1k", r"expected timm://NAME.TAG with a plain ResNet"),
        ("catalog://R-50", r"unknown weights catalog://R-50; did you mean"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        load_initial_weights(Model(18), name)
