"""Exported models, run by onnxruntime on the CPU, against the ops themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d2proj import ops
from d2proj.utils.testing import random_rois

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

DYNAMIC = torch.export.Dim.DYNAMIC


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def exported(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], dynamic: tuple):
    """The function as onnxruntime runs it; ``dynamic``: dynamic dimensions of each argument."""
    from d2proj.ops.onnx import translation_table

    program = torch.onnx.export(
        Call(function).eval(),
        arguments,
        dynamo=True,
        opset_version=19,
        custom_translation_table=translation_table(),
        dynamic_shapes={"arguments": tuple(dict.fromkeys(dims, DYNAMIC) for dims in dynamic)},
        verbose=False,
    )
    domains = {node.domain for node in program.model_proto.graph.node}
    assert domains == {""}, "only standard operators"
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]

    def run(*values: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def make(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rois, boxes, scores with ties, classes some of which are negative."""
    g = torch.Generator().manual_seed(seed)
    rois = random_rois(count, 2, 80.0, generator=g)
    scores = (torch.rand(count, generator=g) * 20).round() / 20
    return rois, rois[:, 1:].clone(), scores, torch.randint(5, (count,), generator=g) - 2


@pytest.mark.parametrize(("aligned", "ratio"), [(True, -1), (False, -1), (False, 2)])
def test_roi_align(aligned: bool, ratio: int) -> None:
    input = torch.randn(2, 5, 20, 22, generator=torch.Generator().manual_seed(1))

    def pool(x: Tensor, rois: Tensor) -> Tensor:
        return ops.roi_align(x, rois, (3, 4), 0.25, ratio, aligned)

    run = exported(pool, (input, make(5)[0]), ((0,), (0,)))
    for count in (5, 0, 1, 33):
        rois = make(count, seed=count)[0]
        torch.testing.assert_close(run(input, rois), pool(input, rois), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms(threshold: float) -> None:
    def suppress(boxes: Tensor, scores: Tensor) -> Tensor:
        return ops.nms(boxes, scores, threshold)

    run = exported(suppress, make(9)[1:3], ((0,), (0,)))
    for count in (9, 0, 1, 300):
        _, boxes, scores, _ = make(count, seed=count)
        assert torch.equal(run(boxes, scores), suppress(boxes, scores))


def test_batched_nms() -> None:
    def suppress(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        return ops.batched_nms(boxes, scores, idxs, 0.5)

    run = exported(suppress, make(9)[1:], ((0,), (0,), (0,)))
    for count in (9, 0, 1, 300):
        _, *arguments = make(count, seed=count)
        assert torch.equal(run(*arguments), suppress(*arguments))
    # No coordinate offset: boxes far out, one of each class, are told apart exactly.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10], [0.0, 0, 10, 10]]) + 2e6
    arguments = [boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([4, 10**6, 4])]
    assert run(*arguments).tolist() == [1, 2]


def test_double_boxes_and_a_detection_head() -> None:
    """A few ops in a row: boxes of one dtype, scores of another, results used further on."""

    def head(x: Tensor, rois: Tensor, scores: Tensor) -> Tensor:
        kept = ops.nms(rois[:, 1:], scores, 0.5)
        return ops.roi_align(x, rois[kept], 2, 0.25, 2, True).mean((2, 3))

    input = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    rois, _, scores, _ = make(7)
    run = exported(head, (input, rois, scores.double()), ((), (0,), (0,)))
    for count in (7, 40):
        rois, _, scores, _ = make(count, seed=count)
        expected = head(input, rois, scores.double())
        torch.testing.assert_close(
            run(input, rois, scores.double()), expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.skipif(not hasattr(ops, "deform_conv2d"), reason="this build has no deform_conv2d")
@pytest.mark.parametrize("modulated", [True, False])
def test_deform_conv2d(modulated: bool) -> None:
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 2, 3, 3, generator=g), torch.randn(6, generator=g)

    def convolve(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        use = mask if modulated else None
        return ops.deform_conv2d(x, offset, weight, bias, 2, 1, 1, use) + mask.mean()

    def arguments(images: int) -> tuple[Tensor, ...]:
        sizes = (images, 4, 9, 8), (images, 36, 5, 4), (images, 18, 5, 4)
        return tuple(torch.randn(size, generator=g) for size in sizes)

    run = exported(convolve, arguments(2), ((0,), (0,), (0,)))
    for images in (2, 3):
        values = arguments(images)
        torch.testing.assert_close(run(*values), convolve(*values), atol=1e-4, rtol=1e-4)
