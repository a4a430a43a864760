"""CmBN against a loop transcription of darknet's kernels; FRN and TLU against timm's."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from timm.layers import FilterResponseNormTlu2d
from torch import nn

from d2proj.checkpoint.darknet import load_darknet_weights, save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.layers import FRN, TLU, CmBN, Conv2d, get_norm
from d2proj.layers.norm import freeze

EPS = 1e-5


@dataclass
class DarknetBatchNorm:
    """What a batch normalisation layer of darknet keeps between calls."""

    scale: np.ndarray
    bias: np.ndarray
    rolling_mean: np.ndarray
    rolling_variance: np.ndarray
    m_avg: np.ndarray
    v_avg: np.ndarray
    scale_updates: np.ndarray
    bias_updates: np.ndarray

    def forward(self, x: np.ndarray, minibatch_index: int) -> np.ndarray:
        """``fast_mean_kernel``, ``fast_v_cbn_kernel``, ``normalize_scale_bias_kernel``."""
        batch, filters, height, width = x.shape
        self.x, self.mean, self.variance = x, np.zeros(filters), np.zeros(filters)
        out = np.zeros_like(x)
        for f in range(filters):
            total = squares = 0.0
            for b in range(batch):
                for value in x[b, f].ravel():
                    total += value
                    squares += value**2
            mean = total / (height * width * batch)
            v = max(squares / (height * width * batch - 1), mean**2)
            alpha = 1.0 / minibatch_index
            self.m_avg[f] = alpha * mean + (1 - alpha) * self.m_avg[f]
            self.v_avg[f] = alpha * v + (1 - alpha) * self.v_avg[f]
            self.mean[f] = self.m_avg[f]
            self.variance[f] = max(0.0, self.v_avg[f] - self.m_avg[f] ** 2)
            self.rolling_mean[f] = 0.01 * self.mean[f] + 0.99 * self.rolling_mean[f]
            self.rolling_variance[f] = 0.01 * self.variance[f] + 0.99 * self.rolling_variance[f]
            normal = (x[:, f] - self.mean[f]) / np.sqrt(self.variance[f] + EPS)
            out[:, f] = normal * self.scale[f] + self.bias[f]
        return out

    def backward(self, delta: np.ndarray) -> np.ndarray:
        """``backward_bias``, ``backward_scale``, ``fast_mean_delta``, ``fast_variance_delta`` and
        ``normalize_delta`` (with the forward's epsilon, as the cuDNN call has it)."""
        batch, filters, height, width = delta.shape
        out = np.zeros_like(delta)
        n = batch * height * width
        for f in range(filters):
            variance = self.variance[f] + EPS
            centered = self.x[:, f] - self.mean[f]
            d = delta[:, f]
            mean_delta = variance_delta = 0.0
            for b in range(batch):
                for dy, c in zip(d[b].ravel(), centered[b].ravel(), strict=True):
                    self.bias_updates[f] += dy
                    self.scale_updates[f] += dy * c / np.sqrt(variance)
                    mean_delta += dy * self.scale[f]
                    variance_delta += dy * self.scale[f] * c
            mean_delta *= -1 / np.sqrt(variance)
            variance_delta *= -0.5 * variance**-1.5
            out[:, f] = (
                d * self.scale[f] / np.sqrt(variance)
                + variance_delta * 2 * centered / n
                + mean_delta / n
            )
        return out


@pytest.mark.parametrize(
    ("images", "subdivisions", "parts"),
    [(6, 3, [2, 2, 2]), (5, 2, [3, 2]), (4, 1, [4]), (2, 8, [1, 1])],
)
def test_cmbn_equals_darknets_loops(images: int, subdivisions: int, parts: list[int]) -> None:
    rng = np.random.default_rng(0)
    c = 3
    theirs = DarknetBatchNorm(
        rng.normal(size=c),
        rng.normal(size=c),
        *(np.zeros(c), np.ones(c)),
        *(np.zeros(c) for _ in range(4)),
    )
    ours = CmBN(c, subdivisions=subdivisions).double()
    ours.weight.data.copy_(torch.from_numpy(theirs.scale))
    ours.bias.data.copy_(torch.from_numpy(theirs.bias))
    for step in range(2):  # the second batch starts its accumulation anew
        # Mini-batches differ much: statistics of earlier ones matter.
        drift = np.repeat(np.arange(len(parts)), parts)[:, None, None, None]
        x = rng.normal(size=(images, c, 3, 4)) * (1 + drift) + drift + 5 * step
        delta = rng.normal(size=x.shape)
        outputs, deltas, start = [], [], 0
        for j, size in enumerate(parts, start=1):
            outputs.append(theirs.forward(x[start : start + size], j))
            deltas.append(theirs.backward(delta[start : start + size]))
            start += size
        leaf = torch.from_numpy(x).requires_grad_()
        y = ours(leaf)
        y.backward(torch.from_numpy(delta))
        for found, expected in (
            (y, np.concatenate(outputs)),
            (leaf.grad, np.concatenate(deltas)),
            (ours.weight.grad, theirs.scale_updates),
            (ours.bias.grad, theirs.bias_updates),
            (ours.running_mean, theirs.rolling_mean),
            (ours.running_var, theirs.rolling_variance),
        ):
            torch.testing.assert_close(found.detach(), torch.from_numpy(expected))
    assert ours.num_batches_tracked == 2 * len(parts)


def test_one_mini_batch_is_almost_batch_norm() -> None:
    x = torch.randn(8, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    results = []
    for norm in (CmBN(4, subdivisions=1).double(), nn.BatchNorm2d(4).double()):
        y = norm(x)
        results.append((y, torch.autograd.grad((y * weight).sum(), x)[0]))
    for found, expected in zip(*results, strict=True):
        # The divisor of E[x²] is n - 1 = 2047.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_cmbn_is_a_batch_norm_elsewhere() -> None:
    conv = Conv2d(3, 4, 3, bias=False, norm=get_norm("CmBN", 4))
    x = torch.randn(4, 3, 8, 8) * 3 + 1
    for _ in range(5):
        conv(x)
    conv.eval()
    unfolded = conv(x.requires_grad_())
    peer = nn.BatchNorm2d(4).eval()
    peer.load_state_dict(conv.norm.state_dict())
    torch.testing.assert_close(unfolded, peer(conv._conv_forward(x, conv.weight, None)))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), unfolded, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(freeze(conv)(x), unfolded, atol=1e-5, rtol=1e-5)


def test_cmbn_in_bfloat16_keeps_statistics_in_float32() -> None:
    norm = CmBN(4)
    x = (torch.randn(8, 4, 8, 8) + 3).bfloat16()
    y = norm(x)
    assert (y.dtype, norm.running_mean.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), CmBN(4)(x.float()), atol=0.02, rtol=0.02)


def test_cbn_sections_of_cfg_files(tmp_path) -> None:
    text = "[net]\nwidth=8\nheight=8\nsubdivisions=2\n[convolutional]\nfilters=4\n{}=1\nsize=3\n"
    cross = DarknetNetwork(text.format("cbn"))
    plain = DarknetNetwork(text.format("batch_normalize"))
    assert isinstance(cross.layers[0].norm, CmBN)
    assert cross.layers[0].norm.subdivisions == 2
    assert type(plain.layers[0].norm) is nn.BatchNorm2d
    cross(torch.randn(4, 3, 8, 8))
    save_darknet_weights(cross, tmp_path / "x.weights")
    load_darknet_weights(plain, tmp_path / "x.weights")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(cross.eval()(x)[0], plain.eval()(x)[0])


def test_cmbn_errors() -> None:
    with pytest.raises(ValueError, match="subdivisions must be positive, got 0"):
        CmBN(4, subdivisions=0)


def test_frn_and_tlu_equal_timms() -> None:
    peer = FilterResponseNormTlu2d(5, eps=1e-6)
    for parameter in peer.parameters():
        nn.init.normal_(parameter)
    ours = get_norm("FRN", 5)
    frn, tlu = ours
    assert (type(frn), type(tlu)) == (FRN, TLU)
    frn.weight.data, frn.bias.data, tlu.threshold.data = peer.weight, peer.bias, peer.tau
    x = torch.randn(3, 5, 6, 7, requires_grad=True)
    weight = torch.randn(3, 5, 6, 7)
    found, expected = ours(x), peer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        *(torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected))
    )
