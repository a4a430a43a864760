"""Hand-written YOLOv4 against the networks of its cfg files, and CSPDarknet53 against timm."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.darknet import Header, save_darknet_weights
from d2proj.darknet.detector import DarknetDetector
from d2proj.engine.config import build, load_config
from d2proj.modeling.backbones import Darknet, csp_darknet53_stages
from d2proj.modeling.meta_arch import YOLO

ROOT = Path(__file__).resolve().parents[2]
#: Config, and the cfg file that it writes out.
PAIRS = {
    "yolov4": "yolov4",
    "yolov4_tiny": "yolov4-tiny",
    "yolov4_csp": "yolov4-csp",
    "yolov4_sam": "yolov4-sam-mish-csp-reorg-bfm",
    "yolov4_csresnext50": "csresnext50-panet-spp-original-optimal",
}


def config_model(name: str, **changes: Any) -> YOLO:
    cfg = load_config(
        ROOT / "configs" / "yolov4" / f"{name}.py", [f"{k}={v}" for k, v in changes.items()]
    )
    return build(cfg, "model")


def sample(boxes: list[list[float]], classes: list[int], size: int = 64) -> dict[str, Any]:
    truth = Instances((size, size))
    truth.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    truth.gt_classes = torch.tensor(classes, dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(boxes))
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": truth}


BATCH = [
    sample([[3, 4, 17, 22], [10, 8, 60, 56], [30, 30, 41, 61]], [0, 17, 79]),
    sample([], []),
]


def paper_cfg(released: str) -> str:
    """yolov4.cfg with what ``yolov4_paper`` has besides, but what is idle in evaluation."""
    text = re.sub(r"activation *= *leaky", "activation=mish", released)
    weighted = "[shortcut]\nweights_type=per_feature\nweights_normalization=relu\n"
    text = text.replace("[shortcut]\n", weighted)
    text = re.sub(r"(max_delta *= *5)", r"\1\nlabel_smooth_eps=0.1", text)
    sections = re.split(r"\n(?=\[)", text)
    gate = (
        "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=1\nactivation=logistic\n",
        "[sam]\nfrom=-2\n",
    )
    # After [net] and layers 136, 147, 158; what was counted from behind them is farther away.
    for layer, filters in ((158, 512), (147, 256), (136, 128)):
        sections[layer + 2 : layer + 2] = [part.format(filters) for part in gate]
    text = "\n".join(sections)
    text = text.replace("layers = -1, -16\n", "layers = -1, -18\n")
    return text.replace("layers = -1, -37\n", "layers = -1, -41\n")


@pytest.mark.parametrize("name", [*PAIRS, "yolov4_paper"])
def test_equals_its_cfg_file(
    name: str, data, randomise, tmp_path: Path, no_initial_weights: None
) -> None:
    """Weights through a file both ways, raw maps, detections, losses and their gradients."""
    cfg = data / "cfg" / f"{PAIRS.get(name, 'yolov4')}.cfg"
    if name == "yolov4_paper":
        text = paper_cfg(cfg.read_text())
        cfg = tmp_path / "paper.cfg"
        cfg.write_text(text)
    theirs = DarknetDetector(cfg_file=cfg).eval()
    theirs.letter_box = False
    randomise(theirs.backbone.network)
    path, again = tmp_path / "x.weights", tmp_path / "again.weights"
    save_darknet_weights(theirs.backbone.network, path, Header(seen=32032000))
    ours = config_model(name).eval()
    assert not load_weights(ours, str(path), strict_classes=True).missing
    save_darknet_weights(ours, again, Header(seen=32032000))
    assert again.read_bytes() == path.read_bytes()

    # The files begin with the finest level, but the tiny one's.
    order = slice(None, None, -1 if name == "yolov4_tiny" else 1)
    theirs.postprocess = ours.postprocess  # the cfg files' detectors have plain NMS
    ours.postprocess.score_thresh = 0.15
    with torch.no_grad():
        images = ours.preprocess_image(BATCH)
        maps = ours.backbone(images.tensor)
        (found,) = ours.head([maps[name] for name in ours.head_in_features])
        their_maps = theirs.backbone(images.tensor)
        expected = list(their_maps.values())[order]
        for ours_map, wanted in zip(found, expected, strict=True):
            assert wanted.std() > 0.01
            torch.testing.assert_close(ours_map, wanted, rtol=0, atol=1e-6)
        detections = ours.detect(images, maps), theirs.detect(images, their_maps)
    for a, b in zip(*detections, strict=True):
        assert len(a) > 10
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)
        boxes = a.pred_boxes.tensor, b.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-5, atol=1e-4)

    truth = [item["instances"] for item in BATCH]
    results = []
    for model, direction in ((ours, slice(None)), (theirs, order)):
        leaves = [x.clone().requires_grad_() for x in expected]
        losses = model.prediction_losses([], (leaves[direction],), truth, (64, 64))
        sum(losses.values()).backward()
        results.append((losses, [leaf.grad for leaf in leaves]))
    (losses, gradients), (their_losses, their_gradients) = results
    assert losses.keys() == {"loss_box", "loss_obj", "loss_cls"}
    for key, value in losses.items():
        assert value > 0
        torch.testing.assert_close(value, their_losses[key], rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_csp_darknet53_equals_timm(randomise, no_initial_weights: None) -> None:
    """All stages. timm has one 1x1 convolution for both paths, and joins them the other way."""
    names = ["c1", "c2", "c3", "c4", "c5"]
    ours = Darknet(stages=csp_darknet53_stages(), out_features=names).eval()
    randomise(ours)
    theirs = timm.create_model("cspdarknet53", act_layer=nn.Mish, num_classes=0).eval()

    def fill(target: nn.Module, *sources: nn.Module, swap: bool = False) -> None:
        weight = torch.cat([source.weight for source in sources])
        if swap:
            weight = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
        target.conv.weight.copy_(weight)
        for field in ("weight", "bias", "running_mean", "running_var"):
            values = torch.cat([getattr(source.norm, field) for source in sources])
            getattr(target.bn, field).copy_(values)

    with torch.no_grad():
        fill(theirs.stem.conv1, ours.c0)
        for name, stage in zip(names, theirs.stages, strict=True):
            own = getattr(ours, name)
            fill(stage.conv_down, own.down)
            fill(stage.conv_exp, own.bypass, own.enter)
            for block, mine in zip(stage.blocks, own.blocks, strict=True):
                fill(block.conv1, mine.conv1)
                fill(block.conv2, mine.conv2)
            fill(stage.conv_transition_b, own.leave)
            fill(stage.conv_transition, own.join, swap=True)
        image = torch.rand(1, 3, 64, 96)
        found = ours(image)
        x = theirs.stem(image)
        for name, stage in zip(names, theirs.stages, strict=True):
            x = stage(x)
            assert x.std() > 0.05
            torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5)


def total(model: YOLO, batch: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack(list(model.train()(batch).values())).sum()


@pytest.mark.parametrize("name", ["yolov4_tiny", "yolov4_paper"])
def test_steps_lower_the_loss(name: str) -> None:
    """Of the same images; what is random in the network (DropBlock) is drawn alike."""
    changes: dict[str, Any] = {"model.num_classes": 3}
    if name == "yolov4_paper":  # the whole of it, but of a fourth of its width
        changes |= {
            "model.backbone.bottom_up.stages.width": 8,
            "model.backbone.bottom_up.stages.blocks": "[1,1,2,2,1]",
            "model.backbone.top_block.in_channels": 256,
            "model.backbone.channels": "[32,64,128]",
            "model.head.conv_dims": "[64,128,256]",
        }
    torch.manual_seed(0)
    model = config_model(name, **changes)
    batch = [sample([[3, 4, 37, 42], [20, 8, 90, 60]], [0, 2], 96), sample([], [], 96)]
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-5, momentum=0.9)
    losses = []
    for _ in range(15):
        torch.manual_seed(1)
        losses.append(total(model, batch))
        optimizer.zero_grad()
        losses[-1].backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0], losses
    model.eval()([sample([], [], 64)])
