"""Other libraries' weights compute the same in our models, proven against those libraries."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from d2proj.checkpoint import flavours, load_weights, naming
from d2proj.checkpoint.predictors import COCO_CATEGORY_IDS
from d2proj.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "common" / "models"
RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def ours(name: str, depth: int = 18, num_classes: int = 80, **model_options) -> nn.Module:
    """Our model with torchvision's architecture, for BGR images of 0..255."""
    config = LazyConfig.load(str(CONFIGS / f"{name}.py")).model
    config.backbone.bottom_up.stages.depth = depth
    config.backbone.bottom_up.stages.stride_in_1x1 = False
    if name == "retinanet":
        config.backbone.top_block.in_feature = "p5"
        config.backbone.top_block.in_channels = 256
    config.num_classes = num_classes
    for key, value in model_options.items():
        config[key] = value
    torch.manual_seed(1)
    return instantiate(config).eval()


def randomize(model: nn.Module) -> nn.Module:
    """Give norms and biases values that a wrong mapping would show."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def theirs_faster(num_classes: int = 91) -> nn.Module:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return randomize(FasterRCNN(backbone, num_classes=num_classes))


def theirs_retina(num_classes: int = 91) -> nn.Module:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    anchors = torchvision.models.detection.retinanet._default_anchorgen()
    return randomize(RetinaNet(backbone, num_classes=num_classes, anchor_generator=anchors))


@pytest.fixture(scope="module")
def faster() -> nn.Module:
    return theirs_faster()


@pytest.fixture(scope="module")
def retina() -> nn.Module:
    return theirs_retina()


@pytest.fixture
def save(tmp_path):
    def write(module_or_state, name="weights.pth") -> Path:
        state = module_or_state
        torch.save(state.state_dict() if isinstance(state, nn.Module) else state, tmp_path / name)
        return tmp_path / name

    return write


def inputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """One image as torchvision normalises it, and as our model does (through its own code)."""
    generator = torch.Generator().manual_seed(2)
    rgb = torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (rgb / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    image = rgb.flip(0) if model.input_format == "BGR" else rgb
    return normalised[None], model.preprocess_image([{"image": image}]).tensor


def assert_near(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 2e-5 * b.abs().max()


PIXELS = [
    pytest.param({}, id="BGR 0..255 unscaled"),
    pytest.param(
        {"input_format": "RGB", "pixel_mean": RGB_MEAN, "pixel_std": RGB_STD}, id="as torchvision"
    ),
    pytest.param({"pixel_std": [57.375, 57.12, 58.395]}, id="BGR scaled"),
    pytest.param({"input_format": "RGB", "pixel_mean": RGB_MEAN}, id="RGB unscaled"),
]


@pytest.mark.parametrize("options", PIXELS)
@torch.no_grad()
def test_faster_rcnn(faster, save, options):
    """Feature maps, RPN outputs, and class and box outputs equal torchvision's, class by class."""
    model = ours("faster_rcnn", **options)
    report = load_weights(model, save(faster), strict_classes=True)
    assert report.filled == 1
    assert not report.missing
    assert not report.unexpected
    normalised, image = inputs(model)
    expected = list(faster.backbone(normalised).values())
    maps = list(model.backbone(image).values())
    for ours_map, their_map in zip(maps, expected, strict=True):
        assert_near(ours_map, their_map)
    logits, deltas = model.proposal_generator.rpn_head(maps)
    for level, (scores, boxes) in enumerate(zip(*faster.rpn.head(expected), strict=True)):
        assert_near(logits[level], scores.permute(0, 2, 3, 1).flatten(1))
        assert_near(deltas[level].flatten(1), boxes.permute(0, 2, 3, 1).flatten(1))
    pooled = torch.rand(5, 256, 7, 7)
    scores, boxes = faster.roi_heads.box_predictor(faster.roi_heads.box_head(pooled))
    our_scores, our_boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    assert_near(our_scores[:, 80], scores[:, 0])  # background
    assert_near(our_scores[:, :80], scores[:, list(COCO_CATEGORY_IDS)])
    assert_near(our_boxes.view(5, 80, 4), boxes.view(5, 91, 4)[:, list(COCO_CATEGORY_IDS)])


@torch.no_grad()
def test_retinanet(retina, save):
    """Logits and deltas of each anchor equal those of torchvision's nearest anchor."""
    model = ours("retinanet")
    report = load_weights(model, save(retina), strict_classes=True)
    assert report.missing == ("loss_normalizer",)
    normalised, image = inputs(model)
    expected = list(retina.backbone(normalised).values())
    maps = list(model.backbone(image).values())
    for ours_map, their_map in zip(maps, expected, strict=True):
        assert_near(ours_map, their_map)
    outputs = retina.head(expected)
    logits, deltas = (torch.cat(levels, 1)[0] for levels in model.head(maps))
    images = torchvision.models.detection.image_list.ImageList(normalised, [(96, 128)])
    their_anchors = retina.anchor_generator(images, expected)[0]
    our_anchors = torch.cat(model.anchor_generator(maps))
    nearest = torch.cdist(our_anchors, their_anchors).argmin(1)  # theirs are rounded
    assert sorted(nearest.tolist()) == list(range(len(their_anchors)))
    assert_near(logits, outputs["cls_logits"][0, nearest][:, list(COCO_CATEGORY_IDS)])
    assert_near(deltas, outputs["bbox_regression"][0, nearest])


def test_coco_ids_are_torchvisions_published_ones():
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    used = [i for i, name in enumerate(names) if name not in ("__background__", "N/A")]
    assert list(COCO_CATEGORY_IDS) == used


def old_spelling(state: dict) -> dict:
    """The names of torchvision before 0.13, as in its published files."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "fpn" in name and "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            name = name.replace("_blocks.weight", "_blocks.0.weight")
            name = name.replace("_blocks.bias", "_blocks.0.bias")
        if "_head.conv." in name:
            head, rest = name.split(".conv.")
            index, _, kind = rest.split(".")
            name = f"{head}.conv.{2 * int(index)}.{kind}"
        if not name.endswith("num_batches_tracked"):
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_spelling_of_the_published_files(name, save, request):
    theirs = request.getfixturevalue({"faster_rcnn": "faster", "retinanet": "retina"}[name])
    new, old = ours(name), ours(name)
    load_weights(new, save(theirs), strict_classes=True)
    state = old_spelling(theirs.state_dict())
    assert not set(state) <= set(theirs.state_dict())
    report = load_weights(old, save(state, "old.pth"), strict_classes=True)
    assert report.filled > 0.999999
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[key]), key
    # torchvision itself reads our idea of the old RPN and tower names the same way
    copy.deepcopy(theirs).load_state_dict(state, strict=False)


@torch.no_grad()
def test_published_files_ran_with_epsilon_zero(faster, save, monkeypatch):
    """Recognised by their checksum; torchvision builds them with epsilon 0."""
    path = save(old_spelling(faster.state_dict()))
    monkeypatch.setattr(flavours, "_EPSILON_ZERO_SHA256", (flavours._sha256(path)[:8],))
    theirs = copy.deepcopy(faster)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_var.mul_(1e-4)  # small enough for an epsilon of 1e-5 to matter
    path = save(old_spelling(theirs.state_dict()))
    monkeypatch.setattr(flavours, "_EPSILON_ZERO_SHA256", (flavours._sha256(path)[:8],))
    model = ours("faster_rcnn")
    report = load_weights(model, path, strict_classes=True)
    assert "epsilon 0" in report.summary()
    normalised, image = inputs(model)
    assert_near(model.backbone.bottom_up(image)["res2"], theirs.backbone.body(normalised)["0"])


def test_other_class_counts(faster, save):
    path = save(faster)
    with pytest.raises(InputError, match="was trained for 90 classes, the model has 5"):
        load_weights(ours("faster_rcnn", num_classes=5), path, strict_classes=True)
    model = ours("faster_rcnn", num_classes=5)
    before = model.roi_heads.box_predictor.cls_score.weight.clone()
    report = load_weights(model, path, strict_classes=False)
    assert sorted(n.rsplit(".", 2)[1] for n in report.reinitialised) == [
        "bbox_pred", "bbox_pred", "cls_score", "cls_score",
    ]  # fmt: skip
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, before)
    assert "re-initialised" in report.summary()


def test_retinanets_other_class_count(retina, save):
    with pytest.raises(InputError, match="was trained for 90 classes, the model has 5"):
        load_weights(ours("retinanet", num_classes=5), save(retina), strict_classes=True)
    report = load_weights(ours("retinanet", num_classes=5), save(retina), strict_classes=False)
    assert sorted(report.reinitialised) == ["head.cls_score.bias", "head.cls_score.weight"]


@pytest.mark.parametrize("strict", [True, False])
def test_another_detector(faster, retina, save, strict):
    with pytest.raises(
        InputError, match="looks like a torchvision RetinaNet, the model is FasterR"
    ):
        load_weights(ours("faster_rcnn"), save(retina), strict_classes=strict)
    with pytest.raises(InputError, match=r"looks like a torchvision Faster R-CNN, the model is Re"):
        load_weights(ours("retinanet"), save(faster), strict_classes=strict)


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        ("fasterrcnn_resnet50_fpn_v2", "Faster R-CNN v2"),
        ("retinanet_resnet50_fpn_v2", "RetinaNet v2"),
        ("fcos_resnet50_fpn", "FCOS"),
        ("ssd300_vgg16", "SSD"),
    ],
)
def test_torchvisions_other_detectors_are_named(save, builder, name):
    with torch.device("meta"):
        build = getattr(torchvision.models.detection, builder)
        names = build(weights=None, weights_backbone=None).state_dict()
    path = save({key: torch.zeros(1) for key in names})
    with pytest.raises(InputError, match=f"looks like a torchvision {name}[, ]"):
        load_weights(ours("faster_rcnn"), path, strict_classes=False)


def test_a_refused_file_changes_nothing(retina, save):
    model = ours("faster_rcnn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError):
        load_weights(model, save(retina), strict_classes=False)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@torch.no_grad()
def test_torchvision_classifiers_fill_the_backbone(save, depth):
    theirs = randomize(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    config = LazyConfig.load(str(CONFIGS / "faster_rcnn.py")).model
    config.backbone.bottom_up.stages.update(depth=depth, stride_in_1x1=False)
    holder = nn.Module()
    holder.backbone = nn.Module()
    holder.backbone.bottom_up = instantiate(config.backbone.bottom_up).eval()
    holder.register_buffer("pixel_mean", torch.tensor([103.53, 116.28, 123.675]), False)
    holder.register_buffer("pixel_std", torch.ones(3), False)
    report = load_weights(holder, save(theirs), strict_classes=True)
    assert report.flavour == f"torchvision ResNet-{depth} backbone"
    assert report.filled == 1
    assert {"fc.weight", "fc.bias"} <= set(report.ignored)
    rgb = torch.rand(1, 3, 64, 64) * 255
    mean, std = torch.tensor(RGB_MEAN).view(3, 1, 1), torch.tensor(RGB_STD).view(3, 1, 1)
    body = torchvision.models._utils.IntermediateLayerGetter(theirs, {"layer4": "res5"})
    features = holder.backbone.bottom_up(rgb.flip(1) - mean.flip(0))
    assert_near(features["res5"], body((rgb - mean) / std)["res5"])


def test_backbone_in_a_whole_model(save):
    path = save(torchvision.models.resnet18(weights=None))
    report = load_weights(ours("faster_rcnn"), path, strict_classes=False)
    assert all(not name.startswith("backbone.bottom_up.") for name in report.missing)
    with pytest.raises(InputError, match="a backbone only"):
        load_weights(ours("faster_rcnn"), path, strict_classes=True)
    with pytest.raises(
        InputError, match=r"torchvision ResNet-18 backbone and fills .* \(ResNet-34"
    ):
        load_weights(ours("faster_rcnn", depth=34), path, strict_classes=False)


def test_settings_that_contradict_the_weights(retina, save):
    with pytest.raises(InputError, match=r"set model\.pixel_mean=\[103\.53, 116\.28, 123\.675\]"):
        load_weights(ours("retinanet", pixel_mean=[127.5] * 3), save(retina), strict_classes=False)
    config = LazyConfig.load(str(CONFIGS / "retinanet.py")).model
    config.backbone.bottom_up.stages.depth = 18
    config.backbone.top_block.in_channels = 512
    with pytest.raises(InputError, match=r"set model\.backbone\.top_block\.in_feature=p5 model"):
        load_weights(instantiate(config), save(retina), strict_classes=True)


def test_stride_of_the_bottlenecks_is_compared(save):
    path = save(torchvision.models.resnet50(weights=None))
    config = LazyConfig.load(str(CONFIGS / "faster_rcnn.py")).model
    report = load_weights(instantiate(config), path, strict_classes=False)
    assert "warning: the weights were trained with the stride" in report.summary()
    assert "stride_in_1x1=False" in report.summary()


def zoo_pickle(path: Path, tensors: dict, **extra) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", **extra}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_detectron2_zoo_pickle(tmp_path):
    source = randomize(ours("retinanet"))
    state = {n: t for n, t in source.state_dict().items() if n != "loss_normalizer"}
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)
    state["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4)
    model = ours("retinanet")
    path = zoo_pickle(tmp_path / "model_final.pkl", state)
    report = load_weights(model, path, strict_classes=True)
    assert report.flavour == "Detectron2 RetinaNet"
    assert report.missing == ("loss_normalizer",)
    assert not report.unexpected
    for name, tensor in model.state_dict().items():
        assert name == "loss_normalizer" or torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_real_detectron2s_model_fills_ours(tmp_path, name):
    """Every tensor of the zoo's R50-FPN model finds its place."""
    zoo = pytest.importorskip("detectron2.model_zoo", reason="the real Detectron2 is not installed")
    from detectron2.modeling import build_model

    zoo_config = zoo.get_config(f"COCO-Detection/{name}_R_50_FPN_1x.yaml")
    zoo_config.MODEL.DEVICE = "cpu"
    state = randomize(build_model(zoo_config)).state_dict()
    model = instantiate(LazyConfig.load(str(CONFIGS / f"{name}.py")).model)
    report = load_weights(model, zoo_pickle(tmp_path / "zoo.pkl", state), strict_classes=True)
    assert set(report.matched) == set(state)
    assert set(report.missing) <= {"loss_normalizer"}
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())


def test_ddp_prefix_and_half_precision(tmp_path, save):
    source = randomize(ours("faster_rcnn"))
    state = {f"module.{name}": tensor.half() for name, tensor in source.state_dict().items()}
    model = ours("faster_rcnn")
    load_weights(model, save({"model": state, "iteration": 3}), strict_classes=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f"module.{name}"].float())


def caffe2_names(state: dict) -> dict:
    """A ResNet's Detectron2 names to Caffe2's blobs, written from the naming's description."""
    parts = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    kinds = {"weight": "bn_gamma", "bias": "bn_beta"}
    blobs = {}
    for name, tensor in state.items():
        *module, kind = name.split(".")
        norm = module[-1] == "norm"
        module = module[:-1] if norm else module
        if module[0] == "stem":
            prefix = "res_conv1" if norm else "conv1"
        else:
            prefix = f"{module[0]}_{module[1]}_{parts[module[2]]}"
        suffix = kinds.get(kind, f"bn_{kind}") if norm else "w"
        blobs[f"{prefix}_{suffix}"] = tensor
    return blobs


@pytest.mark.parametrize(("statistics", "zoo"), [(True, True), (False, False)])
def test_caffe2_resnet(tmp_path, statistics, zoo):
    """MSRA's R-50.pkl as the real Detectron2 (where there is one) reads it, tensor by tensor."""
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load(str(CONFIGS / "faster_rcnn.py")).model)
    prefix = "backbone.bottom_up."
    source = {
        name.removeprefix(prefix): torch.rand_like(tensor)
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix) and (statistics or "running" not in name)
    }
    arrays = {name: tensor.numpy() for name, tensor in caffe2_names(source).items()}
    content = {**arrays, "fc1000_w": arrays["conv1_w"], "conv1_w_momentum": arrays["conv1_w"]}
    if zoo:
        content = {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    report = load_weights(model, path, strict_classes=False)
    assert report.flavour == "Caffe2/MSRA ResNet-50 backbone"
    state = model.state_dict()
    assert all(torch.equal(state[prefix + name], tensor) for name, tensor in source.items())
    assert not any(name.startswith(prefix) for name in report.missing)
    expected = real_detectron2_backbone(path)
    for name, tensor in expected.items():
        assert torch.equal(state[prefix + name], tensor), name


def real_detectron2_backbone(path: Path) -> dict:
    """What the real Detectron2's checkpointer makes of the file, or a skip without it."""
    backbones = pytest.importorskip("detectron2.modeling.backbone", reason="needs real Detectron2")
    if not hasattr(backbones, "build_resnet_backbone"):
        pytest.skip("the real Detectron2 is not installed: its reading is not compared")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    backbone = ResNet(
        BasicStem(norm="FrozenBN"),
        ResNet.make_default_stages(50, norm="FrozenBN"),
        out_features=["res5"],
    )
    DetectionCheckpointer(backbone).load(str(path))
    return backbone.state_dict()


@pytest.mark.parametrize("prefixed", [True, False])
def test_detectron2s_converted_torchvision_backbone(tmp_path, prefixed):
    """Detectron2's converter writes stem/res names and the author "torchvision": RGB, scaled."""
    theirs = randomize(torchvision.models.resnet18(weights=None)).state_dict()
    lead = "backbone.bottom_up." if prefixed else ""
    state = {
        lead + naming.torchvision_resnet_name(name): tensor
        for name, tensor in theirs.items()
        if not name.startswith("fc.") and "num_batches" not in name
    }
    path = zoo_pickle(tmp_path / "r18.pkl", state, matching_heuristics=True)
    content = pickle.loads(path.read_bytes()) | {"__author__": "torchvision"}
    path.write_bytes(pickle.dumps(content))
    model = ours("faster_rcnn")
    report = load_weights(model, path, strict_classes=False)
    assert "Detectron2 ResNet-18 backbone" in report.summary()
    std = torch.tensor(RGB_STD).view(1, 3, 1, 1)
    expected = (theirs["conv1.weight"] / std).flip(1)
    assert_near(model.backbone.bottom_up.stem.conv1.weight, expected)
