"""The networks of cfg files against OpenCV's darknet importer and against darknet's loops."""

import cv2
import numpy as np
import pytest
import torch

from d2proj.checkpoint.darknet import save_darknet_weights
from d2proj.darknet import DarknetNetwork
from tests.darknet.small_cfg import smaller

# OpenCV adds this to the variance.
CV2_EPS = 1e-6
CV2_READS = [
    "cfg/yolov2-tiny.cfg",
    "cfg/yolov2.cfg",
    "cfg/yolov3-tiny.cfg",
    "cfg/yolov3-spp.cfg",
    "cfg/yolov4-tiny.cfg",
    "cfg/yolov4.cfg",
    "cfg/csresnext50-panet-spp-original-optimal.cfg",
    "weights/yolo-fastest-1.1-xl.cfg",
    "weights/MobileNetV2-YOLOv3-Nano-coco.cfg",
]
SIDE = 160


def has_importer() -> bool:
    return hasattr(cv2.dnn, "readNetFromDarknet")


@pytest.mark.skipif(not has_importer(), reason="OpenCV 5 has no darknet importer; install <5")
@pytest.mark.parametrize("name", CV2_READS)
@pytest.mark.usefixtures("no_initial_weights")
@torch.no_grad()
def test_raw_maps_equal_opencvs(data, tmp_path, randomise, name: str) -> None:
    cfg, weights = tmp_path / "x.cfg", tmp_path / "x.weights"
    # A fourth of what is wide: the layers are the same, the test is a matter of a second.
    cfg.write_text(smaller((data / name).read_text(), SIDE, 4 if name.startswith("cfg") else 1))
    network = DarknetNetwork(cfg, bn_eps=CV2_EPS).eval()
    randomise(network)
    save_darknet_weights(network, weights)
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), dtype=np.float32)
    peer = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    peer.setInput(image)
    ours = network(torch.from_numpy(image))
    for head, raw in zip(network.plan.heads, ours, strict=True):
        theirs = torch.from_numpy(peer.forward(f"conv_{head.sources[0]}"))
        assert raw.abs().max() > 0.1
        torch.testing.assert_close(raw, theirs, atol=1e-5, rtol=1e-5)


def reorg_loop(x: np.ndarray, stride: int, original: bool) -> np.ndarray:
    """``reorg_cpu`` of darknet's blas.c, called as reorg_old_layer.c or reorg_layer.c do."""
    _, c, h, w = x.shape
    flat = x.reshape(-1)
    if original:
        out_c, out_h, out_w = c, h, w
    else:
        out_c, out_h, out_w = c * stride**2, h // stride, w // stride
    in_c = out_c // stride**2
    out = np.zeros_like(flat)
    for k in range(out_c):
        for j in range(out_h):
            for i in range(out_w):
                c2, offset = k % in_c, k // in_c
                w2, h2 = i * stride + offset % stride, j * stride + offset // stride
                source = w2 + out_w * stride * (h2 + out_h * stride * c2)
                out[i + out_w * (j + out_h * k)] = flat[source]
    return out.reshape(1, c * stride**2, h // stride, w // stride)


@pytest.mark.parametrize("kind", ["reorg", "reorg3d"])
def test_reorg_equals_darknets_loops(kind: str) -> None:
    text = f"[net]\nwidth=6\nheight=4\nchannels=8\n[{kind}]\nstride=2\n"
    x = torch.arange(8 * 4 * 6).float().view(1, 8, 4, 6)
    expected = reorg_loop(x.numpy(), 2, kind == "reorg")
    (got,) = DarknetNetwork(text)(x)
    assert torch.equal(got.view(1, 32, 2, 3), torch.from_numpy(expected))


def local_loop(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, pad: int) -> np.ndarray:
    """A kernel of its own for each cell (local_layer.c), 3 x 3."""
    filters, height, width = bias.shape
    padded = np.pad(x[0], ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros_like(bias)
    for j in range(height):
        for i in range(width):
            patch = padded[:, j : j + 3, i : i + 3].reshape(-1)
            for f in range(filters):
                out[f, j, i] = weight[j * width + i, f] @ patch + bias[f, j, i]
    return out[None]


@pytest.mark.parametrize("pad", [0, 1])
@torch.no_grad()
def test_local_equals_loops(pad: int) -> None:
    text = (
        "[net]\nwidth=7\nheight=5\nchannels=2\n"
        f"[local]\nfilters=3\nsize=3\nstride=1\npad={pad}\nactivation=linear\n"
    )
    network = DarknetNetwork(text)
    layer = network.layers[0]
    layer.bias.normal_()
    x = torch.randn(1, 2, 5, 7)
    if not pad:  # darknet's own rounding gives 3 x 5 cells
        assert layer.bias.shape == (3, 3, 5)
    (got,) = network(x)
    expected = local_loop(x.numpy(), layer.weight.numpy(), layer.bias.numpy(), pad)
    np.testing.assert_allclose(got.view(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "side"), [(2, 1, 7), (2, 2, 7), (3, 2, 8), (5, 1, 6)])
def test_maxpool_equals_darknets_loop(size: int, stride: int, side: int) -> None:
    """forward_maxpool_layer: windows begin ``padding / 2`` before the map."""
    text = (
        f"[net]\nwidth={side}\nheight={side}\nchannels=1\n[maxpool]\nsize={size}\nstride={stride}\n"
    )
    x = -torch.rand(1, 1, side, side) - 1
    pad = size - 1
    out = (side + pad - size) // stride + 1
    expected = torch.empty(out, out)
    for j in range(out):
        for i in range(out):
            top, left = j * stride - pad // 2, i * stride - pad // 2
            window = x[0, 0, max(top, 0) : top + size, max(left, 0) : left + size]
            expected[j, i] = window.max()
    (got,) = DarknetNetwork(text)(x)
    assert torch.equal(got.view(out, out), expected)


@pytest.mark.parametrize("rule", ["relu", "softmax"])
@pytest.mark.parametrize("kind", ["per_feature", "per_channel"])
@torch.no_grad()
def test_weighted_shortcut_equals_darknets_loop(rule: str, kind: str) -> None:
    """shortcut_multilayer_cpu, with a second layer of fewer channels."""
    conv = "[convolutional]\nfilters={}\nactivation=linear\n"
    text = (
        "[net]\nwidth=3\nheight=2\nchannels=2\n"
        + conv.format(3)
        + conv.format(5)
        + f"[shortcut]\nfrom=-2\nweights_type={kind}\nweights_normalization={rule}\n"
    )
    network = DarknetNetwork(text)
    shortcut = network.layers[2]
    shortcut.weighted_sum.weight.normal_()
    x = torch.randn(1, 2, 2, 3)
    first = network.layers[0](x)
    second = network.layers[1](first)
    weights = shortcut.weighted_sum.weight.expand(2, 5).numpy().astype(np.float64)
    raised = (
        np.maximum(weights, 0)
        if rule == "relu"
        else np.exp(weights - weights.max(0, keepdims=True))
    )
    share = raised / (raised.sum(0) + 1e-4)
    expected = second.numpy().astype(np.float64) * share[0][:, None, None]
    expected[:, :3] += first.numpy() * share[1][:3, None, None]
    (got,) = network(x)
    np.testing.assert_allclose(got.view(1, 5, 2, 3), expected, atol=1e-5)


@pytest.mark.usefixtures("no_initial_weights")
@torch.no_grad()
def test_every_other_published_network_runs(data, randomise) -> None:
    """Small and narrow; the one that fixes its size ([connected]) has a test to itself."""
    for file in sorted(data.glob("cfg/*.cfg")):
        if file.stem == "yolov1" or f"cfg/{file.name}" in CV2_READS:
            continue
        network = DarknetNetwork(smaller(file.read_text(), 64, 4)).eval()
        randomise(network)
        for raw in network(torch.rand(1, 3, 64, 64)):
            assert raw.isfinite().all(), file


@torch.no_grad()
def test_yolov1_runs(data) -> None:
    network = DarknetNetwork(data / "cfg" / "yolov1.cfg").eval()
    (raw,) = network(torch.rand(1, 3, 448, 448))
    assert raw.flatten().shape == (7 * 7 * (20 + 3 * 5),)
    assert raw.isfinite().all()
