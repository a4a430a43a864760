"""weighted_boxes_fusion and non_maximum_weighted, against the package ensemble-boxes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.op_cases.common import Case, Check, MemoryCase, difference, size_of
from d2proj import ops

try:
    import ensemble_boxes
except ImportError:  # then nothing is timed
    ensemble_boxes = None

Inputs = tuple[list[Tensor], list[Tensor], list[Tensor]]
FUNCTIONS = ("weighted_boxes_fusion", "non_maximum_weighted")


def ensemble(models: int, objects: int, labels: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Every model sees every object, moved a little."""
    corner, side = torch.rand(objects, 2) * 0.7, torch.rand(objects, 2) * 0.2 + 0.02
    label = torch.randint(labels, (objects,))
    boxes = []
    for _ in range(models):
        moved = corner + torch.randn(objects, 2) * 0.01
        boxes.append(torch.cat([moved, moved + side], 1).clamp(0, 1).to(dtype))
    scores = [torch.rand(objects).to(dtype) for _ in range(models)]
    return boxes, scores, [label] * models


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Models, objects and labels, few and many."""
    if ensemble_boxes is None:
        return
    shapes = [(3, 100, 20), (1, 1, 1), (2, 5, 1), (3, 20, 5), (5, 1000, 80), (5, 500, 1)]
    for models, objects, labels in shapes[:1] if quick else shapes:
        inputs = ensemble(models, objects, labels)
        # The package is given what it works on fastest.
        arrays = [[each.numpy() for each in part] for part in inputs]
        for name in FUNCTIONS:
            yield Case(
                f"{name}: {models} models, {objects} objects, {labels} labels",
                lambda n=name, a=inputs: getattr(ops, n)(*a),
                lambda n=name, a=arrays: getattr(ensemble_boxes, n)(*a),
                "ensemble-boxes",
                size_of(*(each for part in inputs for each in part)),
            )


def memory_cases() -> Iterator[MemoryCase]:
    """About 400 bytes a box."""
    inputs = ensemble(5, 4000, 80)
    for name in FUNCTIONS:
        yield MemoryCase(name, lambda n=name: getattr(ops, n)(*inputs), 20_000 * 400)


def gpu_checks() -> Iterator[Check]:
    """Bit for bit the CPU's: ties, labels, many models."""
    for models, objects, labels in ((1, 1, 1), (3, 60, 7), (70, 4, 2), (4, 700, 1)):
        for dtype in (torch.float32, torch.float64):
            inputs = ensemble(models, objects, labels, dtype)
            inputs[1][0][:9] = 0.5
            device = [[each.cuda() for each in part] for part in inputs]
            for name in FUNCTIONS:
                got = getattr(ops, name)(*device)
                expected = getattr(ops, name)(*inputs)
                for part, a, b in zip(("boxes", "scores", "labels"), got, expected, strict=True):
                    case = f"{name} {models} {objects} {labels} {str(dtype)[6:]} {part}"
                    yield case, difference(a, b), 0.0
