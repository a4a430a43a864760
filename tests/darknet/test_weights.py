"""Weights files: byte-exact both ways; damaged and foreign ones are refused in words."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import Header, load_darknet_weights, save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.darknet.__main__ import main
from d2proj.darknet.detector import DarknetDetector
from d2proj.errors import InputError

CFG = """[net]
width=4
height=4
channels=2
[convolutional]
batch_normalize=1
filters=4
groups=2
size=3
pad=1
activation=leaky
[local]
filters=2
size=3
pad=1
activation=linear
[shortcut]
from=-2
weights_type=per_feature
weights_normalization=relu
[connected]
output=3
activation=linear
"""
FLOATS = 4 * 4 + 4 * 1 * 9, 2 * 16 + 16 * 2 * 36, 2, 3 * 33
NAN = struct.pack("<f", float("nan"))
PUBLISHED = ["yolo-fastest-1.1-xl", "yolo-fastest-1.1", "MobileNetV2-YOLOv3-Nano-coco"]


def write(path: Path, values: np.ndarray, header: Header | None = None) -> Path:
    path.write_bytes((header or Header()).pack() + values.astype("<f4").tobytes())
    return path


def numbered() -> np.ndarray:
    return np.arange(1, sum(FLOATS) + 1) / 1000


def test_order_of_values(tmp_path: Path) -> None:
    """Written out by hand from darknet's parser.c."""
    network = DarknetNetwork(CFG)
    assert tuple(layer.floats for layer in network.plan.layers) == FLOATS
    header = load_darknet_weights(network, write(tmp_path / "x.weights", numbered()))
    assert header == Header(0, 2, 5, 0)
    values = torch.from_numpy(numbered()).float()
    conv, local, shortcut, connected = network.layers
    for i, tensor in enumerate(
        [conv.norm.bias, conv.norm.weight, conv.norm.running_mean, conv.norm.running_var]
    ):
        assert torch.equal(tensor, values[4 * i : 4 * i + 4])
    assert torch.equal(conv.weight.flatten(), values[16:52])
    assert torch.equal(local.bias.flatten(), values[52:84])
    assert torch.equal(local.weight.flatten(), values[84 : 84 + 1152])
    assert torch.equal(shortcut.weighted_sum.weight.flatten(), values[1236:1238])
    assert torch.equal(connected.linear.bias, values[1238:1241])
    assert torch.equal(connected.linear.weight.flatten(), values[1241:])


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (Header(0, 2, 5, 32013312), 20),
        (Header(0, 1, 0, 5000), 16),
        (Header(0, 2, 5, 1 << 40), 20),
        (Header(1001, 0, 0, 7), 20),
        (Header(0, 1001, 0, 7), 20),
        (Header(0, 0, 0, 2147483647), 16),
    ],
)
def test_headers_and_transposed_connected_layers(tmp_path: Path, header: Header, size: int) -> None:
    assert len(header.pack()) == size
    file = write(tmp_path / "x.weights", numbered(), header)
    network = DarknetNetwork(CFG)
    assert load_darknet_weights(network, file) == header
    stored = torch.from_numpy(numbered()[1241:]).float()
    weight = network.layers[3].linear.weight
    expected = stored.view(32, 3).T if header.transposed else stored.view(3, 32)
    assert torch.equal(weight, expected)
    save_darknet_weights(network, tmp_path / "y.weights", header)
    assert (tmp_path / "y.weights").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("header", [Header(), Header(0, 1001, 0, 3)])
def test_normalised_connected_layers_and_weights_per_channel(
    tmp_path: Path, header: Header
) -> None:
    """load_connected_weights reads the weight before scale, mean and variance."""
    text = (
        "[net]\nwidth=1\nheight=1\nchannels=4\n"
        "[activation]\nactivation=linear\n"
        "[shortcut]\nfrom=-1\nweights_type=per_channel\n"
        "[connected]\nbatch_normalize=1\noutput=3\nactivation=linear\n"
    )
    network = DarknetNetwork(text)
    assert [layer.floats for layer in network.plan.layers] == [0, 8, 3 + 12 + 9]
    values = np.arange(1, 33) / 10
    file = write(tmp_path / "x.weights", values, header)
    assert load_darknet_weights(network, file) == header
    _, shortcut, connected = network.layers
    stored = torch.from_numpy(values).float()
    assert torch.equal(shortcut.weighted_sum.weight.flatten(), stored[:8])
    assert torch.equal(connected.norm.bias, stored[8:11])
    matrix = stored[11:23]
    expected = matrix.view(4, 3).T if header.transposed else matrix.view(3, 4)
    assert torch.equal(connected.linear.weight, expected)
    assert torch.equal(connected.norm.weight, stored[23:26])
    assert torch.equal(connected.norm.running_mean, stored[26:29])
    assert torch.equal(connected.norm.running_var, stored[29:])
    save_darknet_weights(network, tmp_path / "y.weights", header)
    assert (tmp_path / "y.weights").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_convert_both_ways_is_byte_exact(data: Path, tmp_path: Path, name: str) -> None:
    cfg, original = data / "weights" / f"{name}.cfg", data / "weights" / f"{name}.weights"
    checkpoint, back = tmp_path / "x.pth", tmp_path / "x.weights"
    main(["convert", str(cfg), str(original), str(checkpoint)])
    main(["convert", str(cfg), str(checkpoint), str(back)])
    assert back.read_bytes() == original.read_bytes()
    model = DarknetDetector(cfg_file=cfg)
    report = load_weights(model, checkpoint, strict_classes=True)
    assert not report.missing
    direct = DarknetDetector(cfg_file=cfg)
    load_weights(direct, original, strict_classes=True)
    for name_, tensor in direct.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name_]), name_


def test_partial_files(data: Path, tmp_path: Path) -> None:
    """MobileNetV2-Nano.57 fills the first 57 layers and no other; and comes back byte by byte."""
    cfg = data / "weights" / "MobileNetV2-YOLOv3-Nano-coco.cfg"
    partial = data / "weights" / "MobileNetV2-Nano.57"
    model = DarknetDetector(cfg_file=cfg)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = load_weights(model, partial, strict_classes=False)
    for name, tensor in model.state_dict().items():
        if ".layers." in name and not name.endswith("num_batches_tracked"):
            filled = int(name.split(".layers.")[1].split(".")[0]) < 57
            assert (name in report.matched) == filled
            assert filled or torch.equal(tensor, before[name]), name
    with pytest.raises(InputError, match="holds the first 57 of the network's 80 layers"):
        load_weights(model, partial, strict_classes=True)
    main(["convert", str(cfg), str(partial), str(tmp_path / "x.pth")])
    main(["convert", str(cfg), str(tmp_path / "x.pth"), str(tmp_path / "back.57")])
    assert (tmp_path / "back.57").read_bytes() == partial.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-4], "it is truncated or belongs to another network"),
        (lambda b: b[:-3], "is no number of float32 values"),
        (lambda b: b + b"\0\0\0\0", "it belongs to another network"),
        (lambda b: b[:20], "nothing follows its header"),
        (lambda b: b[:10], "has 10 bytes"),
        (lambda b: b"<html>" + b, "its version would be"),
        (
            lambda b: b[:600] + struct.pack("<f", float("nan")) + b[604:],
            r"value 145 is nan, in layer 1",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, damage, message: str) -> None:
    file = write(tmp_path / "x.weights", numbered())
    file.write_bytes(damage(file.read_bytes()))
    network = DarknetNetwork(CFG)
    before = [t.clone() for t in network.state_dict().values()]
    with pytest.raises(InputError, match=message):
        load_darknet_weights(network, file)
    for a, b in zip(before, network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_other_models_say_that_they_need_a_cfg(tmp_path: Path) -> None:
    file = write(tmp_path / "x.weights", numbered())
    with pytest.raises(InputError, match="only a model that was built from its cfg file"):
        load_weights(nn.Linear(2, 2), file, strict_classes=True)


def test_convert_refuses(data: Path, tmp_path: Path, capsys) -> None:
    cfg, weights = (
        data / "weights" / f"{PUBLISHED[1]}.cfg",
        data / "weights" / f"{PUBLISHED[1]}.weights",
    )
    target = tmp_path / "x.pth"
    target.write_text("mine")
    for arguments, message in (
        ([cfg, weights, target], "exists"),
        ([data / "cfg" / "yolov3.cfg", weights, tmp_path / "y.pth"], "holds 346062 values"),
        ([cfg, tmp_path / "absent", tmp_path / "y.pth"], "does not exist"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["convert", *map(str, arguments)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert target.read_text() == "mine"
