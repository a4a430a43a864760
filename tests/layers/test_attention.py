"""Attention blocks against timm's, and YOLOv4's against OpenCV's darknet importer."""

import cv2
import numpy as np
import pytest
import torch
from timm.layers import SqueezeExcite
from timm.layers.cbam import CbamModule
from torch import nn

from d2proj.checkpoint.darknet import save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.layers import CBAM, PointwiseSAM, SqueezeExcitation

SAM = """[net]
width=11
height=7
channels=6
[convolutional]
filters=6
size=1
activation=linear
[convolutional]
{batch_normalize}
filters=6
size=1
activation=logistic
[sam]
from=-2
activation=linear
"""


def randomise(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.1 - (tensor.ndim > 1) * 0.6)
    return module


def copy_weights(source: nn.Module, target: nn.Module, names: dict[str, str]) -> None:
    state = source.state_dict()
    for ours, theirs in names.items():
        state = {k.replace(theirs, ours): v for k, v in state.items()}
    target.load_state_dict(state)


def test_squeeze_excitation_equals_timms() -> None:
    peer = randomise(SqueezeExcite(32, rd_channels=2))
    ours = SqueezeExcitation(32)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(3, 32, 5, 7)
    y = ours(x)
    torch.testing.assert_close(y, peer(x))
    assert (y / x).std() > 0.01  # the gates differ


@pytest.mark.parametrize("training", [False, True])
def test_cbam_equals_timms(training: bool) -> None:
    peer = randomise(CbamModule(32)).train(training)
    ours = CBAM(32).train(training)
    copy_weights(
        peer,
        ours,
        {"fc": "channel.fc", "spatial.": "spatial.conv.conv.", "spatial.norm.": "spatial.conv.bn."},
    )
    x = torch.randn(3, 32, 9, 8)
    torch.testing.assert_close(ours(x), peer(x))


@pytest.mark.parametrize("norm", ["", "BN"])
@torch.no_grad()
def test_sam_equals_darknets(tmp_path, norm: str) -> None:
    line = "batch_normalize=1" if norm else ""
    cfg, weights = tmp_path / "x.cfg", tmp_path / "x.weights"
    cfg.write_text(SAM.format(batch_normalize=line))
    network = DarknetNetwork(cfg, bn_eps=1e-6).eval()
    randomise(network)
    save_darknet_weights(network, weights)
    image = np.random.default_rng(0).normal(size=(1, 6, 7, 11)).astype(np.float32)
    peer = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    peer.setInput(image)

    sam = PointwiseSAM(6, norm=norm).eval()
    if sam.conv.norm is not None:
        sam.conv.norm.eps = 1e-6
    x = network.layers[0](torch.from_numpy(image))
    sam.conv.load_state_dict(network.layers[1].state_dict())
    torch.testing.assert_close(sam(x), torch.from_numpy(peer.forward()), atol=1e-6, rtol=1e-5)


def test_few_channels_keep_one_hidden_unit() -> None:
    assert SqueezeExcitation(8).fc1.out_channels == CBAM(8).fc1.out_channels == 1
    with pytest.raises(ValueError, match="reduction must be positive, got 0"):
        SqueezeExcitation(8, reduction=0)
