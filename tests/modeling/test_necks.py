"""Necks around any backbone: their definitions by hand, and detectors that use them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from d2proj.engine.config import load_config
from d2proj.layers import ASPP, CBAM, RFB, SPPBlock, SqueezeExcitation
from d2proj.modeling.necks import (
    ASFF,
    FPN,
    MLFPN,
    PAN,
    SFAM,
    TUM,
    LastLevelMaxPool,
    LevelBlocks,
)
from tests.modeling.test_networks import tiny
from tests.test_configs import check_step

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEVELS = ["p3", "p4", "p5"]


def fpn(**options: object) -> FPN:
    return FPN(
        bottom_up=tiny(), in_features=["res3", "res4", "res5"], out_channels=16, **options
    ).eval()


def randomise(module: nn.Module) -> nn.Module:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.2).add_(0.0 if tensor.ndim > 1 else 0.3)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return module.eval()


class Composer:
    """Convolutions with folded batch norm from a state dict, in float64 numpy."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {k: v.double().numpy() for k, v in module.state_dict().items()}

    def __call__(self, x: np.ndarray, name: str, *, stride: int = 1, slope: float) -> np.ndarray:
        s = {k.removeprefix(f"{name}."): v for k, v in self.state.items() if k.startswith(name)}
        x = convolve(x, s["weight"], stride)
        if "bias" in s:
            x = x + s["bias"][:, None, None]
        if "norm.weight" in s:
            scale = s["norm.weight"] / np.sqrt(s["norm.running_var"] + 1e-5)
            x = x * scale[:, None, None]
            x = x + (s["norm.bias"] - s["norm.running_mean"] * scale)[:, None, None]
        return np.where(x > 0, x, slope * x)


def convolve(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    k = weight.shape[2]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], weight)


def halve_max(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max((3, 4))


def enlarge(x: np.ndarray, times: int) -> np.ndarray:
    return x.repeat(times, axis=1).repeat(times, axis=2)


class Maps(Backbone):
    """A backbone that gives prepared maps."""

    def __init__(self, maps: dict[str, Tensor], stride: int = 8) -> None:
        super().__init__()
        self.maps = maps
        self.stride = stride

    def output_shape(self) -> dict:
        return {
            name: ShapeSpec(channels=x.shape[1], stride=self.stride * 2**i)
            for i, (name, x) in enumerate(self.maps.items())
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.maps


def prepared(*channels: int) -> tuple[Maps, list[np.ndarray]]:
    maps = [torch.randn(1, c, 16 >> i, 24 >> i).double() for i, c in enumerate(channels)]
    named = dict(zip([*LEVELS, "p6"], maps, strict=False))
    return Maps(named), [x[0].numpy() for x in maps]


def check(found: Tensor, expected: np.ndarray) -> None:
    assert expected.std() > 1e-3
    torch.testing.assert_close(found[0].detach(), torch.from_numpy(expected))


@torch.no_grad()
def test_asff_is_the_released_codes_for_yolov3() -> None:
    """Channels 512, 256, 256 and outputs 1024, 512, 256 there (coarsest first), divided by 32."""
    backbone, (fine, middle, coarse) = prepared(8, 8, 16)
    neck = randomise(
        ASFF(backbone=backbone, in_features=LEVELS, out_channels=[8, 16, 32], compress_channels=4)
    ).double()
    found = neck(torch.zeros(1))
    assert [found[name].shape[1] for name in LEVELS] == [8, 16, 32]

    def conv(x: np.ndarray, level: int, name: str, stride: int = 1) -> np.ndarray:
        return Composer(neck)(x, f"fusions.{level}.{name}", stride=stride, slope=0.1)

    resized = [
        [fine, enlarge(middle, 2), enlarge(conv(coarse, 0, "resize.2"), 4)],
        [conv(fine, 1, "resize.0", 2), middle, enlarge(conv(coarse, 1, "resize.2"), 2)],
        [conv(halve_max(fine), 2, "resize.0", 2), conv(middle, 2, "resize.1", 2), coarse],
    ]
    for level, maps in enumerate(resized):
        votes = np.concatenate([conv(x, level, f"compress.{i}") for i, x in enumerate(maps)])
        state = neck.fusions[level].weigh
        logits = convolve(votes, state.weight.numpy()) + state.bias.numpy()[:, None, None]
        shares = np.exp(logits) / np.exp(logits).sum(0)
        fused = sum(share * x for share, x in zip(shares, maps, strict=True))
        check(found[LEVELS[level]], conv(fused, level, "expand"))


@torch.no_grad()
def test_pan_is_the_papers_path() -> None:
    backbone, (p3, p4, p5) = prepared(6, 6, 6)
    neck = randomise(PAN(backbone=backbone, in_features=LEVELS)).double()
    found = neck(torch.zeros(1))
    u = Composer(neck)
    n4 = u(p4 + u(p3, "down.0", stride=2, slope=0), "output.0", slope=0)
    n5 = u(p5 + u(n4, "down.1", stride=2, slope=0), "output.1", slope=0)
    for name, expected in zip(LEVELS, (p3, n4, n5), strict=True):
        check(found[name], expected)


@torch.no_grad()
def test_sfam_has_a_gate_of_its_own_for_each_scale() -> None:
    sfam = randomise(SFAM(8, num_pyramids=3, num_scales=2, reduction=4)).double()
    pyramids = [[torch.randn(1, 8, s, s).double() for s in (6, 3)] for _ in range(3)]
    for scale, found in enumerate(sfam(pyramids)):
        x = np.concatenate([pyramid[scale][0].numpy() for pyramid in pyramids])
        s = {
            k: v.numpy().squeeze() for k, v in sfam.gates[scale].state_dict().items()
        }  # (6, 24), (6,), (24, 6), (24,)
        hidden = np.maximum(s["fc1.weight"] @ x.mean((1, 2)) + s["fc1.bias"], 0)
        gate = 1 / (1 + np.exp(-(s["fc2.weight"] @ hidden + s["fc2.bias"])))
        check(found, x * gate[:, None, None])
    assert not set(map(id, sfam.gates[0].parameters())) & set(map(id, sfam.gates[1].parameters()))


@torch.no_grad()
def test_mlfpn_is_m2dets() -> None:
    maps = {"res4": torch.randn(1, 5, 8, 12).double(), "res5": torch.randn(1, 7, 4, 6).double()}
    neck = randomise(
        MLFPN(
            bottom_up=Maps(maps, stride=16),
            in_features=["res4", "res5"],
            out_levels=["p4", "p5", "p6"],
            out_channels=8,
            num_pyramids=2,
            base_channels=(6, 10),
        )
    ).double()
    neck.sfam = SFAM(4, num_pyramids=2, num_scales=3).double()
    nn.init.zeros_(neck.sfam.gates[0].fc2.weight)
    nn.init.zeros_(neck.sfam.gates[0].fc2.bias)  # gates of 1/2 at the finest scale
    u = Composer(neck)

    def unit(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        return u(x, name, stride=stride, slope=0.0)

    def tum(x: np.ndarray, k: int) -> list[np.ndarray]:
        p = f"pyramids.{k}"
        x1 = unit(x, f"{p}.down.0", 2)
        x2 = unit(x1, f"{p}.down.1", 2)
        y2 = unit(x2, f"{p}.top")
        y1 = unit(x1, f"{p}.lateral.1") + enlarge(y2, 2)
        y0 = unit(x, f"{p}.lateral.0") + enlarge(y1, 2)
        return [unit(y, f"{p}.smooth.{i}") for i, y in enumerate((y0, y1, y2))]

    fine, coarse = (x[0].numpy() for x in maps.values())
    base = np.concatenate([unit(fine, "base_fine"), enlarge(unit(coarse, "base_coarse"), 2)])
    first = tum(unit(base, "starts.0"), 0)
    second = tum(np.concatenate([unit(base, "starts.1"), first[0]]), 1)
    found = neck(torch.zeros(1))
    check(found["p4"], np.concatenate([first[0], second[0]]) / 2)
    assert {k: tuple(v.shape[1:]) for k, v in found.items()} == {
        "p4": (8, 8, 12),
        "p5": (8, 4, 6),
        "p6": (8, 2, 3),
    }


def test_tum_takes_odd_sizes() -> None:
    maps = TUM(4, 2, num_scales=4)(torch.randn(2, 4, 9, 5))
    assert [tuple(x.shape[2:]) for x in maps] == [(9, 5), (5, 3), (3, 2), (2, 1)]


def test_blocks_change_their_levels_alone() -> None:
    inner = fpn(top_block=LastLevelMaxPool())
    blocks = [SqueezeExcitation(16), RFB(16, 24).eval()]
    neck = LevelBlocks(backbone=inner, in_features=["p3", "p5"], blocks=blocks)
    x = torch.randn(1, 3, 64, 64)
    before, after = inner(x), neck(x)
    assert list(after) == list(before) == list(neck.output_shape())
    for name, expected in {
        **before,
        "p3": blocks[0](before["p3"]),
        "p5": blocks[1](before["p5"]),
    }.items():
        assert torch.equal(after[name], expected)
    assert {k: s.channels for k, s in neck.output_shape().items()} == {
        "p3": 16,
        "p4": 16,
        "p5": 24,
        "p6": 16,
    }
    assert neck.size_divisibility == 32


NECKS: dict[str, Callable[..., nn.Module]] = {
    "pan": lambda inner, levels: PAN(backbone=inner, in_features=levels),
    "asff": lambda inner, levels: ASFF(backbone=inner, in_features=levels),
    "blocks": lambda inner, levels: LevelBlocks(
        backbone=inner, in_features=levels, blocks=[CBAM(64) for _ in levels]
    ),
    "spp": lambda inner, levels: LevelBlocks(
        backbone=inner, in_features=levels[-1:], blocks=[SPPBlock(64, 64)]
    ),
    "aspp": lambda inner, levels: LevelBlocks(
        backbone=inner, in_features=levels[-1:], blocks=[ASPP(64, 64, rates=[1, 2])]
    ),
    "all": lambda inner, levels: PAN(
        backbone=ASFF(backbone=inner, in_features=levels), in_features=levels
    ),
}


@pytest.mark.parametrize("name", NECKS)
@pytest.mark.parametrize("system", ["retinanet", "faster_rcnn"])
def test_detectors_take_any_neck(system: str, name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / "common" / "models" / f"{system}_tiny.py"))
    cfg.model.num_classes = 3
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    model.backbone = NECKS[name](model.backbone, ["p2", *LEVELS][system == "retinanet" :])
    check_step(model, torch.optim.SGD(model.parameters(), lr=1e-4))


def test_backbone_weights_load_into_a_wrapped_backbone(tmp_path) -> None:
    from d2proj.checkpoint import load_weights

    cfg = load_config(CONFIGS / "retinanet" / "retinanet_tiny_asff.py")
    cfg.model.num_classes = 3
    source, model = (instantiate(cfg.model) for _ in range(2))
    stem = "backbone.backbone.bottom_up."
    state = {k.removeprefix(stem): v for k, v in source.state_dict().items() if stem in k}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    load_weights(model, tmp_path / "backbone.pth", strict_classes=False)
    assert state
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[stem + name], tensor)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"'p9' is no map of the backbone, which has \['p3'"):
        LevelBlocks(backbone=fpn(), in_features=["p9"], blocks=[nn.Identity()])
    with pytest.raises(ValueError, match="2 levels take as many blocks, got 1"):
        LevelBlocks(backbone=fpn(), in_features=["p3", "p4"], blocks=[nn.Identity()])
    with pytest.raises(ValueError, match=r"ASFF needs maps whose strides double, got \[8, 32\]"):
        ASFF(backbone=fpn(), in_features=["p3", "p5"])
    with pytest.raises(ValueError, match="PAN needs maps of the same number of channels"):
        PAN(backbone=tiny(), in_features=["res3", "res4", "res5"])
    with pytest.raises(ValueError, match="MLFPN joins two maps"):
        MLFPN(bottom_up=tiny(), in_features=["res3"], out_levels=["p3"])
    with pytest.raises(ValueError, match="out_channels must be a multiple of the 8 pyramids"):
        MLFPN(bottom_up=tiny(), in_features=["res3", "res4"], out_levels=["p3"], out_channels=9)
