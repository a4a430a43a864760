"""Small helpers of layers, the contract of backbones, and postprocessing."""

import pytest
import torch
from detectron2.layers import ShapeSpec, cat, nonzero_tuple
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances


def test_shape_spec() -> None:
    spec = ShapeSpec(channels=3, stride=4)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (3, None, None, 4)
    assert spec == ShapeSpec(3, None, None, 4)


def test_cat_does_not_copy_a_single_tensor() -> None:
    tensor = torch.rand(2, 3)
    assert cat([tensor]) is tensor
    assert cat((tensor, tensor), dim=1).shape == (2, 6)
    with pytest.raises(AssertionError):
        cat(tensor)


def test_nonzero_tuple() -> None:
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    assert [index.tolist() for index in nonzero_tuple(torch.tensor(5))] == [[0]]
    assert [index.tolist() for index in nonzero_tuple(torch.tensor(0))] == [[]]


class Identity(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self._out_features = ["p2"]
        self._out_feature_channels = {"p2": 3, "hidden": 5}
        self._out_feature_strides = {"p2": 4, "hidden": 8}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p2": images}


def test_backbone_contract() -> None:
    backbone = Identity()
    assert backbone.output_shape() == {"p2": ShapeSpec(channels=3, stride=4)}
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}
    with pytest.raises(TypeError):
        Backbone()


@pytest.mark.parametrize("registry", [BACKBONE_REGISTRY, META_ARCH_REGISTRY])
def test_registries_take_names_once(registry: object) -> None:
    registered = type("d2proj_test_model", (), {})
    registry.register(registered)
    assert registry.get("d2proj_test_model") is registered
    with pytest.raises(AssertionError):
        registry.register(registered)


@pytest.mark.parametrize("name", ["pred_boxes", "proposal_boxes"])
def test_detections_return_to_the_original_image(name: str) -> None:
    instances = Instances((30, 40), scores=torch.tensor([0.1, 0.2, 0.3]))
    boxes = Boxes([[1.0, 2, 20, 12], [-5, -5, 100, 100], [41, 2, 50, 9]])
    instances.set(name, boxes)
    result = detector_postprocess(instances, 60, 20)
    assert result.image_size == (60, 20)
    assert result.get(name).tensor.tolist() == [[0.5, 4, 10, 24], [0, 0, 20, 60]]
    torch.testing.assert_close(result.scores, torch.tensor([0.1, 0.2]))


def test_postprocessing_keeps_no_detections() -> None:
    none = Instances((30, 40), pred_boxes=Boxes([]), scores=torch.zeros(0))
    assert len(detector_postprocess(none, 60, 20)) == 0


def test_postprocessing_needs_finite_boxes() -> None:
    with pytest.raises(AssertionError):
        detector_postprocess(Instances((3, 4), scores=torch.zeros(2)), 6, 8)
    broken = Instances((3, 4), pred_boxes=Boxes([[0.0, 0, float("nan"), 1]]))
    with pytest.raises(AssertionError):
        detector_postprocess(broken, 6, 8)
