import torch

from d2proj import ops
from tests.ops.calls import Call, Draw


def sigmoid_focal_loss(draw: Draw) -> Call:
    shape = (draw.choice(0, 1, 5, 40, 300), draw.choice(0, 1, 3, 16, 81))
    inputs = draw.tensor(*shape, dtype=draw.dtype(), scale=5.0)
    if draw.choice(True, False):
        targets = draw.tensor(*shape, dtype=inputs.dtype).sigmoid()
    else:
        targets = draw.tensor(shape[0], scale=3.0).nan_to_num().to(torch.int64)
    # A mean of nothing is a NaN.
    reduction = draw.choice("none", "sum", "mean" if inputs.numel() else "sum")
    options = (draw.choice(0.25, -1.0, 1.0), abs(draw.number(0.0, 3.0)), reduction)
    return Call(ops.sigmoid_focal_loss, (inputs, targets, *options), draw.sane, (0,))


CALLS = {"sigmoid_focal_loss": sigmoid_focal_loss}
