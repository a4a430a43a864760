"""SPP, ASPP and RFB against OpenCV, torchvision and the definitions put together by hand."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3

from d2proj.checkpoint.darknet import save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.layers import ASPP, RFB, SPP, RFBs, SPPBlock
from tests.layers.test_attention import randomise

# The lines of yolov4.cfg.
DARKNET_SPP = """[net]
width=23
height=17
channels=6
[convolutional]
filters=4
size=1
activation=leaky
[maxpool]
stride=1
size=5
[route]
layers=-2
[maxpool]
stride=1
size=9
[route]
layers=-4
[maxpool]
stride=1
size=13
[route]
layers=-1,-3,-5,-6
[convolutional]
filters=6
size=1
activation=leaky
"""


@torch.no_grad()
def test_spp_equals_opencvs(tmp_path) -> None:
    cfg, weights = tmp_path / "x.cfg", tmp_path / "x.weights"
    cfg.write_text(DARKNET_SPP)
    network = randomise(DarknetNetwork(cfg)).eval()
    save_darknet_weights(network, weights)
    image = np.random.default_rng(0).normal(size=(1, 6, 17, 23)).astype(np.float32)
    peer = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    peer.setInput(image)
    block = SPPBlock(6, 6, mid_channels=4, norm="")
    block.reduce.load_state_dict(network.layers[0].state_dict())
    block.merge.load_state_dict(network.layers[7].state_dict())
    expected = torch.from_numpy(peer.forward())
    torch.testing.assert_close(block(torch.from_numpy(image)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(13, 9, 5), (3, 7), (5,)])
@pytest.mark.parametrize("shape", [(19, 19), (4, 30), (1, 1)])
def test_spp_is_one_window_a_size(sizes: tuple[int, ...], shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    direct = torch.cat([*(F.max_pool2d(x, k, 1, k // 2) for k in sizes), x], 1)
    pooled = SPP(sizes)(x)
    assert torch.equal(pooled, direct)
    weight = torch.randn_like(pooled)
    ours, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (pooled, direct))
    torch.testing.assert_close(ours, expected)


def test_spp_errors() -> None:
    for sizes in [(), (4,), (0,)]:
        with pytest.raises(ValueError, match="kernel_sizes must be odd and positive"):
            SPP(sizes)


@pytest.mark.parametrize("training", [False, True])
def test_aspp_equals_torchvisions(training: bool) -> None:
    peer = randomise(deeplabv3.ASPP(6, [2, 3, 5], 8)).train(training)
    peer.project[3].p = 0.0
    ours = ASPP(6, 8, rates=[2, 3, 5]).train(training)
    names = {f"convs.{i}.0": f"branches.{i}" for i in range(4)}
    names |= {f"convs.{i}.1": f"branches.{i}.norm" for i in range(4)}
    names |= {"convs.4.1": "image_pool", "convs.4.2": "image_pool.norm"}
    names |= {"project.0": "project", "project.1": "project.norm"}
    ours.load_state_dict(
        {
            f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
            for k, v in peer.state_dict().items()
        }
    )
    x = torch.randn(2, 6, 11, 13)
    torch.testing.assert_close(ours(x), peer(x), atol=1e-5, rtol=1e-5)


def test_aspp_trains_on_one_image() -> None:
    aspp = ASPP(6, 8, rates=[2])
    aspp(torch.randn(1, 6, 9, 9)).sum().backward()
    assert aspp.image_pool.norm.training
    assert aspp.image_pool.norm.num_batches_tracked == 0
    assert aspp.project.norm.num_batches_tracked == 1


class Composer:
    """RFBNet's units from a state dict: convolution, batch norm of running values, ReLU."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def __call__(self, x: Tensor, name: str, *, relu: bool = True, **conv: object) -> Tensor:
        s = self.state
        mean, var = s[f"{name}.norm.running_mean"], s[f"{name}.norm.running_var"]
        x = F.conv2d(x, s[f"{name}.weight"], **conv)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * s[f"{name}.norm.weight"][:, None, None] + s[f"{name}.norm.bias"][:, None, None]
        return x.relu() if relu else x


def compose_rfb(u: Composer, x: Tensor, stride: int, visual: int) -> list[Tensor]:
    """``BasicRFB`` (features.md A4.2)."""
    a = u(x, "branches.0.0", stride=stride)
    a = u(a, "branches.0.1", padding=visual, dilation=visual, relu=False)
    b = u(x, "branches.1.0")
    b = u(b, "branches.1.1", padding=1, stride=stride)
    b = u(b, "branches.1.2", padding=visual + 1, dilation=visual + 1, relu=False)
    c = u(x, "branches.2.0")
    c = u(c, "branches.2.1", padding=1)
    c = u(c, "branches.2.2", padding=1, stride=stride)
    c = u(c, "branches.2.3", padding=2 * visual + 1, dilation=2 * visual + 1, relu=False)
    return [a, b, c]


def compose_rfbs(u: Composer, x: Tensor) -> list[Tensor]:
    """``BasicRFB_a``."""
    a = u(u(x, "branches.0.0"), "branches.0.1", padding=1, relu=False)
    b = u(u(x, "branches.1.0"), "branches.1.1", padding=(1, 0))
    b = u(b, "branches.1.2", padding=3, dilation=3, relu=False)
    c = u(u(x, "branches.2.0"), "branches.2.1", padding=(0, 1))
    c = u(c, "branches.2.2", padding=3, dilation=3, relu=False)
    d = u(u(x, "branches.3.0"), "branches.3.1", padding=(0, 1))
    d = u(d, "branches.3.2", padding=(1, 0))
    d = u(d, "branches.3.3", padding=5, dilation=5, relu=False)
    return [a, b, c, d]


def shapes(module: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters() if p.ndim == 4]


@pytest.mark.parametrize(("stride", "visual"), [(1, 1), (2, 1), (1, 2)])
@torch.no_grad()
def test_rfb_is_its_definition(stride: int, visual: int) -> None:
    block = randomise(RFB(32, 20, stride, visual, 0.3)).eval()
    i = 4  # 32 / 8
    assert shapes(block) == [
        (2 * i, 32, 1, 1),
        (2 * i, 2 * i, 3, 3),
        (i, 32, 1, 1),
        (2 * i, i, 3, 3),
        (2 * i, 2 * i, 3, 3),
        (i, 32, 1, 1),
        (6, i, 3, 3),
        (2 * i, 6, 3, 3),
        (2 * i, 2 * i, 3, 3),
        (20, 6 * i, 1, 1),
        (20, 32, 1, 1),
    ]
    x = torch.randn(2, 32, 13, 16)
    u = Composer(block.state_dict())
    joined = u(torch.cat(compose_rfb(u, x, stride, visual), 1), "linear", relu=False)
    expected = (0.3 * joined + u(x, "shortcut", stride=stride, relu=False)).relu()
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rfbs_is_its_definition() -> None:
    block = randomise(RFBs(32, 20)).eval()
    i = 8  # 32 / 4
    assert shapes(block)[8:12] == [(4, 32, 1, 1), (6, 4, 1, 3), (i, 6, 3, 1), (i, i, 3, 3)]
    x = torch.randn(2, 32, 13, 16)
    u = Composer(block.state_dict())
    joined = u(torch.cat(compose_rfbs(u, x), 1), "linear", relu=False)
    expected = (0.1 * joined + u(x, "shortcut", relu=False)).relu()
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert RFBs(32, 20, stride=2)(x).shape == (2, 20, 7, 8)
