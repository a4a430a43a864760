"""Weights of VGG-16 and of torchvision's SSD, whole or in part, in our models."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.config import instantiate
from torch import nn

from d2proj.checkpoint import load_weights, vgg
from d2proj.engine.config import load_config
from d2proj.errors import InputError
from d2proj.modeling.backbones import VGG

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Holder(nn.Module):
    """A slim VGG where detectors have theirs, and what they say of their pixels."""

    def __init__(self, norm: str = "", **options) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = VGG(
            channels=(8, 8, 16, 16, 16), fc_channels=16, norm=norm,
            out_features=["conv4_3", "conv5_3", "fc7"], **options,
        )  # fmt: skip
        self.register_buffer("pixel_mean", torch.tensor([104.0, 117.0, 123.0]), False)
        self.register_buffer("pixel_std", torch.ones(3), False)
        self.input_format = "BGR"


def slim_vgg16(batch_norm: bool = False) -> nn.Sequential:
    layers = [8, 8, "M", 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, "M", 16, 16, 16, "M"]
    return torchvision.models.vgg.make_layers(layers, batch_norm=batch_norm)


def randomize(module: nn.Module) -> nn.Module:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return module.eval()


@pytest.mark.parametrize("lead", ["features.", ""])
@pytest.mark.parametrize("batch_norm", [False, True])
@torch.no_grad()
def test_torchvisions_features(tmp_path: Path, lead: str, batch_norm: bool) -> None:
    torch.manual_seed(0)
    theirs = randomize(slim_vgg16(batch_norm))
    state = {lead + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    model = Holder("BN" if batch_norm else "").eval()
    report = load_weights(model, tmp_path / "vgg.pth", strict_classes=False)
    assert report.flavour == "VGG backbone"
    parameters = dict(model.named_parameters())
    missing = {name for name in report.missing if name in parameters}
    assert {name.split(".")[2] for name in missing} == {"fc6", "fc7"}
    rgb = 255 * torch.rand(1, 3, 64, 96)  # 8 x 12 at the third pooling: nothing is rounded
    mean = torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1)
    maps = model.backbone.bottom_up((rgb - mean).flip(1))
    step = 3 if batch_norm else 2
    ends = {"conv4_3": 10 * step + 3, "conv5_3": 13 * step + 4}
    for name, end in ends.items():
        torch.testing.assert_close(maps[name], theirs[:end](rgb - mean), rtol=1e-4, atol=1e-4)


def test_reducedfc_fills_fc6_and_fc7(tmp_path: Path) -> None:
    features = slim_vgg16()
    state = features.state_dict()
    fc6, fc7 = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)
    for number, layer in ((31, fc6), (33, fc7)):
        state |= {f"{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save(state, tmp_path / "vgg16_reducedfc.pth")
    model = Holder()
    report = load_weights(model, tmp_path / "vgg16_reducedfc.pth", strict_classes=False)
    assert report.filled == 1
    trunk = model.backbone.bottom_up
    for ours, theirs in ((trunk.fc6, fc6), (trunk.fc7, fc7), (trunk.conv5_3, features[28])):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_classifier_is_decimated() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = torch.randint(-128, 128, shape, generator=g, dtype=torch.int8)
        tensors[f"{name}.bias"] = torch.arange(4096)
    made = vgg.decimated_classifier(tensors)
    fc6 = tensors["classifier.0.weight"].numpy()
    rng = np.random.default_rng(0)
    for o, c, i, j in zip(*(rng.integers(0, n, 50) for n in (1024, 512, 3, 3)), strict=True):
        assert made["fc6.weight"][o, c, i, j] == fc6[4 * o, c * 49 + 3 * i * 7 + 3 * j]
    assert made["fc6.weight"].shape == (1024, 512, 3, 3)
    expected = tensors["classifier.3.weight"][::4, ::4]
    assert torch.equal(made["fc7.weight"][:, :, 0, 0], expected)
    assert made["fc6.bias"].tolist() == made["fc7.bias"].tolist() == list(range(0, 4096, 4))
    tensors["classifier.0.weight"] = torch.full((1, 1), torch.nan).expand(4096, 25088)
    assert vgg.decimated_classifier(tensors) == {}
    assert vgg.decimated_classifier({}) == {}


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(slim_vgg16().state_dict(), path)
    settings = load_config(CONFIGS / "retinanet" / "retinanet_tiny.py").model
    settings.num_classes = 3
    retinanet = instantiate(settings)
    with pytest.raises(InputError, match="looks like a VGG backbone and fills 0% of the model's"):
        load_weights(retinanet, path, strict_classes=False)
    torch.save(torchvision.models.vgg.make_layers([8, 8, 8, 8]).state_dict(), path)
    with pytest.raises(InputError, match=r"of the model's backbone \(VGG\)"):
        load_weights(Holder(), path, strict_classes=False)


@pytest.fixture(scope="module")
def ssd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's SSD of 91 rows, as its published file."""
    path = tmp_path_factory.mktemp("ssd") / "ssd300.pth"
    model = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
    torch.save({name: t.half() for name, t in model.state_dict().items()}, path)
    return path


def ssd(config: str, num_classes: int) -> nn.Module:
    settings = load_config(CONFIGS / "ssd" / f"{config}.py").model
    settings.num_classes = num_classes
    return instantiate(settings)


def test_cocos_rows_of_torchvisions_ssd(ssd_file: Path) -> None:
    """Numbers of a published file: 91 rows of each box, ten of them no class of COCO."""
    model = ssd("ssd300_torchvision", 80)
    report = load_weights(model, ssd_file, strict_classes=True)
    assert (report.filled, report.missing, report.unexpected) == (1, (), ())
    state = torch.load(ssd_file)
    rows = state["head.classification_head.module_list.1.weight"].view(6, 91, 1024, 3, 3)
    ours = model.head.levels[1].cls_score.weight.view(6, 81, 1024, 3, 3)
    for index, category in ((0, 1), (11, 13), (79, 90), (80, 0)):  # person, stop sign, ...
        assert torch.equal(ours[:, index].half(), rows[:, category])
    model.anchor_generator.max_size = None
    with pytest.raises(InputError, match=r"set model\.anchor_generator\.max_size=300"):
        load_weights(model, ssd_file, strict_classes=True)


def test_ssds_other_class_count(ssd_file: Path) -> None:
    model = ssd("ssd300_torchvision", 5)
    with pytest.raises(InputError, match="was trained for 90 classes, the model has 5"):
        load_weights(model, ssd_file, strict_classes=True)
    before = model.head.levels[0].cls_score.weight.clone()
    report = load_weights(model, ssd_file, strict_classes=False)
    assert sorted(report.reinitialised) == sorted(
        f"head.levels.{i}.cls_score.{kind}" for i in range(6) for kind in ("weight", "bias")
    )
    assert torch.equal(model.head.levels[0].cls_score.weight, before)
