"""Darknet-19, Darknet-53, the tiny trunk: against timm, the classifiers' cfg files, a loop."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import load_darknet_weights, save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.engine.config import build, load_config
from d2proj.errors import InputError
from d2proj.layers import Conv2d, FrozenBatchNorm2d
from d2proj.modeling.backbones import (
    Darknet,
    DarknetClassifier,
    SameMaxPool2d,
    darknet19_stages,
    darknet53_stages,
    darknet_tiny_stages,
)

ROOT = Path(__file__).resolve().parents[2]
ALL = ["c0", "c1", "c2", "c3", "c4", "c5"]


@pytest.fixture(autouse=True)
def no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test fills all weights itself; drawing millions of them first takes seconds."""
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)


def test_darknet53_equals_timm(randomise) -> None:
    """Every stage; timm's slope is 0.01, darknet's 0.1."""
    theirs = timm.create_model("darknet53", features_only=True, pretrained=False).eval()
    for module in theirs.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.1
    ours = Darknet(stages=darknet53_stages(), out_features=ALL).eval()
    randomise(ours)
    # Both list a convolution's weight, then its normalisation's tensors, in the order of the net.
    sources = [t for k, t in ours.state_dict().items() if not k.endswith("num_batches_tracked")]
    targets = [t for k, t in theirs.state_dict().items() if not k.endswith("num_batches_tracked")]
    assert len(sources) == len(targets) == 52 * 5
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = ours(image), theirs(image)
    shapes = ours.output_shape()
    for k, (name, wanted) in enumerate(zip(ALL, expected, strict=True)):
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=2e-5)
        assert (shapes[name].channels, shapes[name].stride) == (32 * 2**k, 2**k)
        assert wanted.shape == (2, 32 * 2**k, 64 // 2**k, 96 // 2**k)


@pytest.mark.parametrize(
    ("cfg", "stages", "floats"),
    [
        ("darknet19", darknet19_stages, 20_856_776),
        ("darknet53", darknet53_stages, 41_645_640),
    ],
)
def test_classifier_equals_its_cfg_file(
    cfg: str, stages, floats: int, data, randomise, tmp_path: Path
) -> None:
    """Probabilities and the file, whole and without its last layer (darknet53.conv.74)."""
    theirs = DarknetNetwork(data / "cfg" / f"{cfg}.cfg").eval()
    randomise(theirs)
    path, again = tmp_path / "x.weights", tmp_path / "again.weights"
    save_darknet_weights(theirs, path)
    ours = DarknetClassifier(backbone=Darknet(stages=stages(), out_features=["c5"])).eval()
    load_darknet_weights(ours, path)
    save_darknet_weights(ours, again)
    assert path.read_bytes() == again.read_bytes()
    assert path.stat().st_size == 20 + 4 * floats
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        (expected,) = theirs(image)
        torch.testing.assert_close(ours(image).softmax(1), expected, rtol=1e-4, atol=1e-7)
    assert expected.std(1).min() > 1e-4


@pytest.mark.parametrize(
    ("config", "cfg", "layers", "floats"),
    [
        ("yolov3/yolov3", "yolov3", 74, 40_620_640),  # darknet53.conv.74
        ("yolov2/yolov2", "yolov2", 23, 19_831_776),  # darknet19_448.conv.23
        ("yolov3/yolov3_tiny", "yolov3-tiny", 13, None),
    ],
)
def test_partial_files_fill_the_trunk(
    config: str, cfg: str, layers: int, floats: int | None, data, randomise, tmp_path: Path
) -> None:
    network = DarknetNetwork(data / "cfg" / f"{cfg}.cfg")
    randomise(network)
    path = tmp_path / f"trunk.conv.{layers}"
    save_darknet_weights(network, path, layers=layers)
    if floats is not None:
        assert path.stat().st_size == 20 + 4 * floats
    model = build(load_config(ROOT / "configs" / f"{config}.py"), "model")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(path), strict_classes=False)
    trunk = model.backbone.bottom_up
    inside = {f"backbone.bottom_up.{name}" for name, _ in trunk.named_parameters()}
    assert inside <= set(report.matched)
    assert all(name.startswith("backbone.bottom_up.") for name in report.matched)
    # The same values in the same places, the others as they were.
    convs = [m for m in network.layers if isinstance(m, Conv2d)]
    ours = [m for m in trunk.modules() if isinstance(m, Conv2d)]
    for one, other in zip(ours, convs[: len(ours)], strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.norm.running_var, other.norm.running_var)
    for name in report.missing:
        assert torch.equal(model.state_dict()[name], untouched[name]), name
    with pytest.raises(InputError, match="another network"):
        load_darknet_weights(Darknet(stages=darknet_tiny_stages(width=12), out_features=ALL), path)


def test_stride_one_pooling_is_darknets() -> None:
    """forward_maxpool_layer with size=2, stride=1, padding=1: offsets 0 and 1, none before."""
    x = torch.randn(2, 3, 5, 7)
    expected = np.full(x.shape, -np.inf)
    for n, c, i, j in itertools.product(*map(range, x.shape)):
        for row, column in itertools.product((i, i + 1), (j, j + 1)):
            if row < 5 and column < 7:
                expected[n, c, i, j] = max(expected[n, c, i, j], float(x[n, c, row, column]))
    assert torch.equal(SameMaxPool2d()(x), torch.from_numpy(expected).float())


def test_stages_that_are_not_asked_for_are_left_out(randomise) -> None:
    whole = Darknet(stages=darknet_tiny_stages(width=4), out_features=ALL).eval()
    randomise(whole)
    part = Darknet(stages=darknet_tiny_stages(width=4), out_features=["c2", "c1"]).eval()
    part.load_state_dict(whole.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps, all_maps = part(image), whole(image)
    assert list(maps) == ["c2", "c1"]
    assert all(torch.equal(maps[name], all_maps[name]) for name in maps)
    assert not hasattr(part, "c3")
    assert (part.size_divisibility, whole.size_divisibility) == (4, 32)
    with pytest.raises(ValueError, match="out_features must name some of"):
        Darknet(stages=darknet_tiny_stages(), out_features=["res5"])


def test_frozen_stages_do_not_learn() -> None:
    trunk = Darknet(stages=darknet_tiny_stages(width=4), out_features=["c5"], freeze_at=2)
    assert not any(p.requires_grad for p in [*trunk.c0.parameters(), *trunk.c1.parameters()])
    assert isinstance(trunk.c1[1].norm, FrozenBatchNorm2d)
    assert all(p.requires_grad for p in trunk.c2.parameters())
