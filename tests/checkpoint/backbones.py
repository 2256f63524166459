"""Small models with known outputs, to write weights from."""

import torch
import torchvision
from torch import nn

from atss_core.layers import FrozenBatchNorm2d
from atss_core.modeling.backbone.resnet import ResNet

THIN = {"stem_channels": 8, "width_per_group": 8, "out_channels": 32}


class Model(nn.Module):
    """A backbone where a detector has it."""

    def __init__(self, depth=50, norm=FrozenBatchNorm2d, **options):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.body = ResNet(depth, norm=norm, **options).eval()

    @torch.inference_mode()
    def forward(self, images):
        return self.backbone.body(images)


def randomise_norms(module):
    """Give norms statistics as training leaves them, so that none is neutral."""
    for norm in module.modules():
        if hasattr(norm, "running_var"):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.01, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.1)
    return module


def assert_same(first, second):
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@torch.inference_mode()
def stages(classifier, images):
    """C3 to C5 of a torchvision model."""
    x = classifier.maxpool(classifier.relu(classifier.bn1(classifier.conv1(images))))
    features = [classifier.layer2(classifier.layer1(x))]
    features.append(classifier.layer3(features[-1]))
    features.append(classifier.layer4(features[-1]))
    return features


def make_classifier(name):
    torch.manual_seed(0)
    return randomise_norms(getattr(torchvision.models, name)()).eval()
