from collections.abc import Callable
from typing import Any

from torch import Tensor

from d2proj import ops
from tests.ops.calls import Call, Draw


def of_models(function: Callable[..., Any], models: int) -> Callable[..., Any]:
    """The function, of boxes, scores and labels dealt out to models in turn."""

    def call(boxes: Tensor, scores: Tensor, labels: Tensor, *rest: Any) -> Any:
        dealt = [[each[m::models] for m in range(models)] for each in (boxes, scores, labels)]
        return function(*dealt, *rest)

    return call


def arguments(draw: Draw, models: int) -> tuple:
    count = draw.choice(0, 1, 5, 40)
    boxes = draw.boxes(count, 0.4, draw.choice(*draw.box_dtypes))
    scores = draw.tensor(count, scale=0.3).abs().to(draw.dtype())
    labels = draw.tensor(count, scale=1.5).nan_to_num().long()
    weights = [draw.number(0.1, 2.0) for _ in range(models)]
    limits = (draw.number(0.2, 0.9), draw.number(0.0, 0.3))
    return boxes, scores, labels, draw.choice(None, weights), *limits


def weighted_boxes_fusion(draw: Draw) -> Call:
    models = draw.integer(1, 3)
    kind = draw.choice("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
    function = of_models(ops.weighted_boxes_fusion, models)
    rest = (kind, draw.choice(True, False))
    return Call(function, (*arguments(draw, models), *rest), draw.sane)


def non_maximum_weighted(draw: Draw) -> Call:
    models = draw.integer(1, 3)
    function = of_models(ops.non_maximum_weighted, models)
    return Call(function, arguments(draw, models), draw.sane)


CALLS = {
    "weighted_boxes_fusion": weighted_boxes_fusion,
    "non_maximum_weighted": non_maximum_weighted,
}
