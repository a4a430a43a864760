"""multilevel_roi_align against torchvision, roi_align level by level, the twin, and its page."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

from d2proj.ops import MultiLevelRoIAlign, multilevel_roi_align, reference, roi_align
from d2proj.ops.multilevel_roi_align import REDUCTIONS
from d2proj.ops.reference.multilevel_roi_align import assign_levels
from d2proj.utils.testing import (
    FLOATING,
    TOLERANCE,
    devices,
    in_layout,
    random_rois,
    run_python,
)

NAN, INF = float("nan"), float("inf")
LAYOUTS = ("nchw", "nhwc", "sliced", "permuted")
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
twin = reference.multilevel_roi_align.multilevel_roi_align


def make(
    seed: int = 0,
    n: int = 2,
    c: int = 5,
    k: int = 20,
    side: int = 160,
    layout: str = "nchw",
    dtype: torch.dtype = torch.float32,
    levels: int = 4,
) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(math.ceil(side * s), math.ceil(side * 1.3 * s)) for s in SCALES[:levels]]
    maps = [torch.randn(n, c, h, w, generator=g).to(dtype) for h, w in sizes]
    rois = random_rois(
        k, n, side, generator=g, dtype=torch.float64 if dtype == torch.float64 else torch.float32
    )
    return [in_layout(m, layout).requires_grad_() for m in maps], rois


def gradients(output: Tensor, maps: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(output.shape, generator=g).to(output)
    return torch.autograd.grad(output, maps, up)


def check_same(got: Tensor, expected: Tensor, maps: list[Tensor], tolerance: float) -> None:
    """Values and gradients."""
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    theirs = gradients(expected, maps)
    for a, b in zip(gradients(got, maps), theirs, strict=True):
        torch.testing.assert_close(a, b, atol=20 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(16))
def test_assigned_equals_torchvisions_pooler(seed: int) -> None:
    c, k = (1, 8, 16, 37)[seed % 4], (1, 12, 80)[seed % 3]
    maps, rois = make(seed, c=c, k=k, layout=LAYOUTS[seed // 4], n=1 + seed % 2)
    n = maps[0].shape[0]
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(n)]
    module = torchvision.ops.MultiScaleRoIAlign(list("0123"), (3, 2), 2, canonical_scale=40)
    module.scales, module.map_levels = SCALES, torchvision.ops.poolers.LevelMapper(2, 5, 40)
    expected = module(dict(zip("0123", maps, strict=True)), boxes, [(160, 160)] * n)
    options = ((3, 2), SCALES, 2, False)
    check_same(multilevel_roi_align(maps, boxes, *options, canonical_size=40), expected, maps, 1e-4)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 2), (21, 60), (70, 9)])
def test_equals_torchvision_level_by_level(
    reduce: str, layout: str, shape: tuple[int, int]
) -> None:
    """Few and many boxes and channels: with and without the kernel's compact buffers."""
    c, k = shape
    maps, rois = make(3, c=c, k=k, layout=layout, dtype=torch.float64)
    levels = torch.arange(k) % 4 if reduce == "assigned" else None
    for ratio, aligned in ((2, True), (-1, False)):
        each = [
            torchvision.ops.roi_align(m, rois, 3, s, ratio, aligned)
            for m, s in zip(maps, SCALES, strict=True)
        ]
        stacked = torch.stack(each, 1)
        expected = {
            "assigned": lambda x: x[torch.arange(k), levels],
            "none": lambda x: x,
            "sum": lambda x: x.sum(1),
            "max": lambda x: x.max(1).values,
        }[reduce](stacked)
        got = multilevel_roi_align(maps, rois, 3, SCALES, ratio, aligned, levels, reduce)
        if reduce == "max":  # a tie of zeros (outside every map): both gradients are rightful
            got = torch.where(expected == 0, 0, got)
            expected = torch.where(expected == 0, 0, expected)
        check_same(got, expected, maps, 1e-9)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("k", [2, 60])
def test_max_of_one_level_is_roi_align(dtype: torch.dtype, k: int) -> None:
    """The winner is recorded on every path: with few boxes the kernel takes another."""
    maps, rois = make(5, c=5, k=k, dtype=dtype)
    got = multilevel_roi_align(maps[:1], rois, 3, SCALES[:1], 2, True, None, "max")
    expected = roi_align(maps[0], rois, 3, SCALES[0], 2, True)
    assert torch.equal(got, expected)
    up = torch.randn(got.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    (ours,), (theirs,) = (torch.autograd.grad(x, maps[0], up) for x in (got, expected))
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced"])
def test_equals_twin_in_every_dtype(
    device: str, dtype: torch.dtype, reduce: str, layout: str
) -> None:
    maps, rois = make(c=18, k=12, dtype=dtype, layout=layout, side=64)
    maps = [in_layout(m.detach().to(device), layout).requires_grad_() for m in maps]
    rois = rois.to(device)
    args = (maps, rois, 2, SCALES, 1, True, None, reduce)
    got = multilevel_roi_align(*args, canonical_size=16)
    expected = twin(*args, canonical_size=16)
    assert got.dtype == dtype
    if reduce != "none":
        assert got.is_contiguous() or layout == "nhwc"
        assert got.is_contiguous(memory_format=torch.channels_last) or layout != "nhwc"
    tolerance = 4 * TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    ours = gradients(got, maps)
    for mine, theirs, m in zip(ours, gradients(expected, maps), maps, strict=True):
        torch.testing.assert_close(mine, theirs, atol=5 * tolerance, rtol=5 * tolerance)
        assert mine.stride() == m.stride() or layout == "sliced"


def test_levels_are_the_poolers_rule() -> None:
    """Random boxes, sizes at the powers of two and beside them, degenerate and not finite ones."""
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        sides = torch.rand(3000, 2, generator=g, dtype=dtype) * 900
        exact = 112.0 * 2.0 ** torch.arange(-3, 5, dtype=dtype)
        beside = [exact, exact * (1 - 1e-3), exact * (1 + 1e-3)]
        sides = torch.cat([sides, torch.cat(beside)[:, None].expand(-1, 2)])
        odd = [[NAN, 1], [INF, 5], [INF, 0], [0, 0], [-5, 4], [-5, -4], [1e30, 1e30]]
        sides = torch.cat([sides, torch.tensor(odd, dtype=dtype)])
        rois = torch.cat([torch.zeros(len(sides), 3, dtype=dtype), sides], 1)
        # Each level is a map of its own number; a ratio of 1 and one bin reads it somewhere inside.
        maps = [torch.full((1, 1, 4096, 4096), float(i)) for i in range(4)]
        maps = [m[..., :1, :1].expand(1, 1, 4096, 4096) for m in maps]
        got = multilevel_roi_align(maps, rois, 1, SCALES, 1, True)[:, 0, 0, 0]
        expected = assign_levels(rois[:, 1:], min_level=2, max_level=5)
        finite = sides.isfinite().all(1) & (sides.abs() < 4096).all(1)
        assert torch.equal(got[finite].long(), expected[finite])
        assert (expected[finite].bincount() > 5).all()
        # What pools to zero shows its level in a gradient: nowhere. So only the result is asked.
        assert got[~sides.isfinite().all(1)].eq(0).all()


def test_ties_go_to_the_finest_level_and_nan_spreads() -> None:
    maps = [torch.ones(1, 17, 8, 8, requires_grad=True) for _ in range(3)]
    rois = torch.tensor([[0.0, 2, 2, 6, 6]])
    output = multilevel_roi_align(maps, rois, 1, [1.0, 1.0, 1.0], 2, True, None, "max")
    grads = torch.autograd.grad(output.sum(), maps)
    assert grads[0].sum().item() == pytest.approx(17)
    assert not grads[1].any()
    assert not grads[2].any()
    with torch.no_grad():
        maps[1].fill_(NAN)
        maps[2].fill_(9)
    for layout in ("nchw", "nhwc"):
        each = [in_layout(m.detach(), layout).requires_grad_() for m in maps]
        output = multilevel_roi_align(each, rois, 1, [1.0, 1.0, 1.0], 2, True, None, "max")
        assert output.isnan().all()
        assert [bool(g.any()) for g in torch.autograd.grad(output.sum(), each)] == [0, 1, 0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("channels", [1, 17])
def test_gradcheck(reduce: str, channels: int) -> None:
    maps, rois = make(c=channels, k=4, n=1, side=24, dtype=torch.float64, levels=2)

    def pool(*each: Tensor) -> Tensor:
        return multilevel_roi_align(
            each, rois, 2, SCALES[:2], 2, True, None, reduce, canonical_size=12, canonical_level=2
        )

    assert torch.autograd.gradcheck(pool, maps, fast_mode=True)


@pytest.mark.parametrize(
    ("reduce", "layout"), [*((r, "nchw") for r in REDUCTIONS), ("max", "nhwc")]
)
def test_opcheck(reduce: str, layout: str) -> None:
    maps, rois = make(k=5, side=64, layout=layout)
    index = REDUCTIONS.index(reduce)
    for grad in (False, True):
        for levels in (None, torch.arange(5) % 4) if reduce == "assigned" else (None,):
            inputs = [m.detach().requires_grad_(grad) for m in maps]
            sample = (inputs, rois, levels, SCALES, 3, 2, 2, True, index, 32.0, 4)
            torch.library.opcheck(torch.ops.d2proj.multilevel_roi_align.default, sample)
    inputs = [m.detach() for m in maps]
    output, winner = torch.ops.d2proj.multilevel_roi_align(
        inputs, rois, None, SCALES, 3, 2, 2, True, index, 32.0, 4
    )
    sizes = [[m.shape[d] for m in maps] for d in (2, 3)]
    last = [int(layout == "nhwc")] * 4
    head = (output, winner, rois, None, SCALES, 3, 2, 2, 5, *sizes)
    sample = (*head, 2, True, index, 32.0, 4, last, False)
    torch.library.opcheck(torch.ops.d2proj._multilevel_roi_align_backward.default, sample)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_compiles_without_graph_breaks(reduce: str) -> None:
    maps, rois = make(k=9, side=64)

    def pool(maps: list[Tensor], boxes: Tensor) -> Tensor:
        doubled = [m * 2 for m in maps]
        return multilevel_roi_align(doubled, boxes, 3, SCALES, 2, reduce=reduce).sum(-1)

    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True)
    expected, got = pool(maps, rois), compiled(maps, rois)
    assert torch.equal(got, expected)
    for a, b in zip(gradients(got, maps), gradients(expected, maps), strict=True):
        assert torch.equal(a, b)
    assert compiled(maps, rois[:4]).shape[0] == 4


def test_one_level_is_roi_align() -> None:
    maps, rois = make(c=16, levels=1)
    expected = roi_align(maps[0], rois, 3, 0.25, 2, True)
    (theirs,) = gradients(expected, maps)
    for reduce in ("assigned", "sum", "max"):
        got = multilevel_roi_align(maps, rois, 3, [0.25], 2, True, None, reduce)
        assert torch.equal(got, expected)
        assert torch.equal(gradients(got, maps)[0], theirs)


def test_box_list_and_module() -> None:
    maps, rois = make()
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    expected = multilevel_roi_align(maps, rois[rois[:, 0].argsort(stable=True)], 3, SCALES, 2)
    module = MultiLevelRoIAlign(3, SCALES, 2)
    assert torch.equal(module(maps, boxes), expected)
    assert "reduce='assigned'" in repr(module)
    levels = torch.zeros(20, dtype=torch.int64)
    assert torch.equal(module(maps, rois, levels), roi_align(maps[0], rois, 3, 0.25, 2, True))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_empty_and_strange(device: str, reduce: str) -> None:
    maps, _ = make(c=3)
    maps = [m.detach().to(device).requires_grad_() for m in maps]
    shape = (4,) if reduce == "none" else ()
    none = torch.zeros(0, 5, device=device)
    output = multilevel_roi_align(maps, none, 2, SCALES, reduce=reduce)
    assert output.shape == (0, *shape, 3, 2, 2)
    assert not any(g.any() for g in torch.autograd.grad(output.sum(), maps))
    strange = [[0, NAN, 0, 9, 9], [1, 0, 0, INF, 9], [0, -1e30, -1e30, 1e30, 1e30], [1, 9, 9, 1, 1]]
    boxes = torch.tensor(strange, device=device)
    output = multilevel_roi_align(maps, boxes, 2, SCALES, reduce=reduce)
    assert output.isfinite().all()
    assert output[:2].eq(0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(output.sum(), maps))
    # A level without pixels adds nothing.
    empty = [maps[0], maps[1][:, :, :0], *maps[2:]]
    output = multilevel_roi_align(empty, boxes, 2, SCALES, reduce=reduce)
    assert output.isfinite().all()
    assert multilevel_roi_align([m[:, :0] for m in maps], boxes, 2, SCALES).shape == (4, 0, 2, 2)


def test_wrong_arguments_are_named() -> None:
    maps, rois = make(k=3)
    ok = torch.zeros(3, dtype=torch.int64)
    cases = [
        ({"inputs": maps[:3]}, "one map for each of the 4 spatial_scales, got 3"),
        ({"inputs": [*maps[:3], maps[3].double()]}, "one dtype"),
        ({"inputs": [*maps[:3], maps[3][:, :2]]}, "same batch size and channels"),
        ({"spatial_scales": [1 / 4, 1 / 8, 1 / 16, 1 / 20]}, "halving powers of two"),
        ({"spatial_scales": [0.3, 0.15, 0.075, 0.0375]}, "halving powers of two"),
        ({"levels": ok[:2]}, r"levels must have shape \(3\), got \(2\)"),
        ({"levels": ok.int()}, "levels must be int64"),
        ({"levels": ok + 4}, r"levels\[0\] must be from 0 to 3, got 4"),
        ({"levels": ok, "reduce": "sum"}, "only for reduce='assigned'"),
        ({"boxes": rois[:, :4]}, r"boxes must have shape \(K, 5\)"),
        ({"boxes": rois + 7}, r"boxes\[0, 0\] must be an image index"),
        ({"output_size": 0}, "output_size must be positive"),
        ({"canonical_size": 0.0}, "canonical_size must be positive"),
    ]
    good = {"inputs": maps, "boxes": rois, "output_size": 2, "spatial_scales": SCALES}
    for change, message in cases:
        with pytest.raises(RuntimeError, match=f"multilevel_roi_align: .*{message}"):
            multilevel_roi_align(**{**good, **change})
    with pytest.raises(ValueError, match="reduce must be one of"):
        multilevel_roi_align(**good, reduce="mean")
    assert multilevel_roi_align(**{**good, "spatial_scales": [0.3] * 4}, levels=ok).shape[0] == 3


def test_autocast_and_double_backward() -> None:
    maps, rois = make()
    half = [m.detach().bfloat16() for m in maps]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = multilevel_roi_align(half, rois.bfloat16(), 3, SCALES)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, multilevel_roi_align(half, rois.bfloat16().float(), 3, SCALES))
    output = multilevel_roi_align(maps, rois, 3, SCALES)
    grad = torch.autograd.grad(output.square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="multilevel_roi_align: double backward"):
        grad[0].sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_bits_do_not_depend_on_threads(layout: str, reduce: str) -> None:
    maps, rois = make(n=1, c=16, k=70, layout=layout)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            output = multilevel_roi_align(maps, rois, 3, SCALES, 2, reduce=reduce)
            results.append((output, *gradients(output, maps)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("level", ["base", "avx2"])
def test_every_simd_level(level: str) -> None:
    code = """
import torch
from d2proj.ops import multilevel_roi_align, reference
from tests.ops.test_multilevel_roi_align import check_same, make, SCALES, twin
for dtype in (torch.float32, torch.float64):
    for layout in ("nchw", "nhwc"):
        maps, rois = make(c=21, k=9, dtype=dtype, layout=layout, side=64)
        for reduce in ("assigned", "max"):
            args = (maps, rois, 3, SCALES, 2, True, None, reduce)
            check_same(multilevel_roi_align(*args), twin(*args), maps, 1e-5)
"""
    done = run_python(code, {"D2PROJ_SIMD": level})
    assert done.returncode == 0, done.stderr
