"""WordTree and YOLO9000 against transcriptions of tree.c's and region_layer.c's loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.checkpoint.darknet import load_darknet_weights, save_darknet_weights
from d2proj.darknet import DarknetNetwork
from d2proj.darknet.detector import DarknetDetector
from d2proj.engine.config import build, load_config
from d2proj.errors import InputError
from d2proj.modeling.dense_heads.yolo9000 import TreeDecoder
from d2proj.modeling.losses.region import RegionLoss
from d2proj.modeling.losses.yolo9000 import TreeRegionLoss
from d2proj.modeling.word_tree import WordTree, load_tree, read_map, read_tree

ROOT = Path(__file__).resolve().parents[2]
# A root pair; 0 has three kinds, 3 of them two; 1 has an only child.
PARENTS = [-1, -1, 0, 0, 0, 3, 3, 1]
TREE = "".join(f"n{i} {p}\n" for i, p in enumerate(PARENTS))
ANCHORS = [[0.6, 0.7], [1.9, 2.1], [3.3, 2.5]]
SIDE, CELLS = 96, 3


def random_parents(seed: int, count: int = 60) -> list[int]:
    """A tree in breadth-first order."""
    rng = np.random.default_rng(seed)
    parents = [-1] * int(rng.integers(1, 5))
    node = 0
    while len(parents) < count:
        parents += [node] * int(rng.choice([0, 1, 2, 5])) if node < len(parents) - 1 else [node] * 2
        node += 1
    return parents


class CTree:
    """read_tree of tree.c, with the ``child`` of pjreddie's: loops over lines, nothing checked."""

    def __init__(self, parents: list[int]) -> None:
        self.parent, self.n = parents, len(parents)
        self.group, self.offset, self.size = [], [], []
        self.child = [-1] * self.n
        last, size = -1, 0
        for i, parent in enumerate(parents):
            if parent != last:
                self.offset.append(i - size)
                self.size.append(size)
                size, last = 0, parent
            self.group.append(len(self.size))
            if parent >= 0:
                self.child[parent] = len(self.size)
            size += 1
        self.offset.append(self.n - size)
        self.size.append(size)

    def softmax(self, x):
        """softmax_tree."""
        out = np.empty(self.n)
        for offset, size in zip(self.offset, self.size, strict=True):
            part = x[offset : offset + size]
            e = np.exp(part - part.max())
            out[offset : offset + size] = e / e.sum()
        return out

    def probability(self, x, c):
        """get_hierarchy_probability."""
        p = 1.0
        while c >= 0:
            p *= x[c]
            c = self.parent[c]
        return p

    def predictions(self, x):
        """hierarchy_predictions."""
        x = x.copy()
        for j in range(self.n):
            if self.parent[j] >= 0:
                x[j] *= x[self.parent[j]]
        return x

    def top(self, x, thresh):
        """hierarchy_top_prediction, of probabilities given the parent."""
        p, group = 1.0, 0
        while True:
            best, best_i = 0.0, 0
            for i in range(self.size[group]):
                if x[i + self.offset[group]] > best:
                    best, best_i = x[i + self.offset[group]], i + self.offset[group]
            if p * best > thresh:
                p *= best
                group = self.child[best_i]
                if group < 0:
                    return best_i
            elif group == 0:
                return best_i
            else:
                return self.parent[self.offset[group]]

    def delta(self, out, c, scale):
        """delta_region_class: minus the gradient of the class values."""
        delta = np.zeros(self.n)
        while c >= 0:
            offset, size = self.offset[self.group[c]], self.size[self.group[c]]
            delta[offset : offset + size] = -scale * out[offset : offset + size]
            delta[c] = scale * (1 - out[c])
            c = self.parent[c]
        return delta


@pytest.mark.parametrize("seed", range(6))
def test_probabilities_and_descent_are_darknets(seed):
    parents = random_parents(seed)
    c, tree = CTree(parents), WordTree(parents)
    x = np.random.default_rng(seed).normal(size=(40, c.n)) * 3
    conditional = np.stack([c.softmax(row) for row in x])
    values = torch.from_numpy(x)
    np.testing.assert_allclose(tree.log_conditional(values).exp(), conditional, rtol=1e-12)
    absolute = np.stack([c.predictions(row) for row in conditional])
    ours = tree.log_probability(values).exp()
    np.testing.assert_allclose(ours, absolute, rtol=1e-11)
    for node in range(c.n):
        of_node = [c.probability(row, node) for row in conditional]
        found = tree.log_probability_of(values, node).exp()
        np.testing.assert_allclose(found, of_node, rtol=1e-11)
    for threshold in (0.0, 0.1, 0.3, 0.5, 0.9):
        expected = [c.top(row, threshold) for row in conditional]
        assert tree.descend(ours, threshold).tolist() == expected
    # AlexeyAB's get_region_boxes: the last node above one half, if there is one.
    deepest = tree.descend(ours, 0.5).tolist()
    for node, row in zip(deepest, absolute, strict=True):
        if (row > 0.5).any():
            assert node == np.flatnonzero(row > 0.5)[-1]


def test_probabilities_of_extreme_values():
    tree = WordTree(PARENTS)
    x = torch.tensor([[300.0, -300, 0, 90, -90, 1e4, -1e4, 0]], requires_grad=True)
    log_p = tree.log_probability(x)
    assert log_p[0, 5].item() == pytest.approx(0.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert torch.isfinite(gradient).all()
    half = tree.log_probability(torch.zeros(2, 8, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert half[0].exp().tolist() == pytest.approx(
        [1 / 2, 1 / 2, 1 / 6, 1 / 6, 1 / 6, 1 / 12, 1 / 12, 1 / 2]
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "it is empty"),
        ("\n\n", None, "it is empty"),
        ("a -1\nb 7\n", 2, "its parent is 7, but nodes are numbered 0 to 1"),
        ("a -1\nb 2\nc 0\n", 2, "parents must come before their children"),
        ("a 1\nb 0\n", 1, "parents must come before their children"),
        ("a 0\n", 1, "its parent is itself"),
        ("a -2\n", 1, "its parent is -2"),
        ("a -1\nb 0\nc -1\n", 3, "the roots must stand in a row"),
        ("a -1\nb -1\nc 0\nd 1\ne 0\n", 5, "the children of 0 must stand in a row"),
        ("a -1\nb\n", 2, "expected a name and the number of its parent"),
        ("a -1\n\nb 0\n", 2, "expected a name"),
        ("a -1\nb 0\0\0\0\n", 2, "expected a name"),
    ],
)
def test_malformed_trees(text, line, message, tmp_path):
    path = tmp_path / "x.tree"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_tree(path)
    assert line is None or f"line {line}:" in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "x.tree"
    path.write_bytes(TREE.replace("\n", "\r\n").encode() + b"\r\n")
    tree = read_tree(path)
    assert tree.parents.tolist() == PARENTS
    assert tree.names[6] == "n6"
    assert tree.path(6) == [6, 3, 0]
    (tmp_path / "x.map").write_text("5\r\n1\r\n")
    assert read_map(tmp_path / "x.map", tree) == [5, 1]
    mapped = load_tree(path=path, class_map=tmp_path / "x.map", num_classes=2)
    assert mapped.nodes(torch.tensor([1, 0])).tolist() == [1, 5]
    with pytest.raises(InputError, match="has 8 classes, the model 2"):
        load_tree(path=path, class_map=None, num_classes=2)
    for bad in ("8", "-1", "a", ""):
        (tmp_path / "bad.map").write_text(f"1\n{bad}\n" if bad else "")
        with pytest.raises(InputError, match=r"entry 2|it is empty"):
            read_map(tmp_path / "bad.map", tree)
    with pytest.raises(InputError, match="cannot read the class tree"):
        read_tree(tmp_path / "none.tree")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def make(seed: int, tree: WordTree):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(1, len(ANCHORS) * (5 + len(tree)), CELLS, CELLS))
    decoder = TreeDecoder(anchors=ANCHORS, tree=tree).double()
    return raw, decoder


def truth(boxes: list[list[float]], classes: list[int], has_box: list[bool] | None = None):
    instances = Instances((SIDE, SIDE), gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if has_box is not None:
        instances.gt_has_box = torch.tensor(has_box)
    return instances


@pytest.mark.parametrize("seed", range(4))
def test_detections_are_darknets(seed):
    """get_region_detections, box by box."""
    c, tree = CTree(PARENTS), WordTree(PARENTS)
    raw, decoder = make(seed, tree)
    boxes, scores, classes = decoder(torch.from_numpy(raw[0]), (SIDE, SIDE), 0.4)
    mapped = TreeDecoder(anchors=ANCHORS, tree=WordTree(PARENTS, class_map=[3, 1, 6])).double()
    of_map = mapped(torch.from_numpy(raw[0]), (SIDE, SIDE), 0.1)
    values = raw.reshape(len(ANCHORS), 5 + c.n, CELLS, CELLS)
    expected, expected_map = [], []
    for n in range(len(ANCHORS)):
        for j in range(CELLS):
            for i in range(CELLS):
                x = values[n, :, j, i]
                conditional = c.softmax(x[5:])
                objectness = sigmoid(x[4])
                center = (i + sigmoid(x[0])) / CELLS * SIDE, (j + sigmoid(x[1])) / CELLS * SIDE
                w, h = (
                    math.exp(v) * a / CELLS * SIDE for v, a in zip(x[2:4], ANCHORS[n], strict=True)
                )
                corners = [
                    center[0] - w / 2,
                    center[1] - h / 2,
                    center[0] + w / 2,
                    center[1] + h / 2,
                ]
                if objectness > 0.4:
                    expected.append([*corners, objectness, c.top(conditional, 0.5)])
                for k, node in enumerate([3, 1, 6]):
                    p = objectness * c.predictions(conditional)[node]
                    if p > 0.1:
                        expected_map.append([*corners, p, k])
    for found, wanted in (((boxes, scores, classes), expected), (of_map, expected_map)):
        assert wanted
        ours = torch.cat([found[0], found[1][:, None], found[2][:, None]], 1).numpy()
        np.testing.assert_allclose(ours, np.array(wanted), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("assumed", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_a_mere_label_are_darknets(seed, assumed):
    """forward_region_layer with a truth beyond 100 000, and the paper's assumed overlap."""
    c, tree = CTree(PARENTS), WordTree(PARENTS)
    raw, decoder = make(seed, tree)
    kind = [5, 2, 7, 0][seed]
    values = raw.reshape(len(ANCHORS), 5 + c.n, CELLS, CELLS)
    delta = np.zeros_like(values)
    best, where = 0.0, None
    for n in range(len(ANCHORS)):
        for j in range(CELLS):
            for i in range(CELLS):
                x = values[n, :, j, i]
                p = sigmoid(x[4]) * c.probability(c.softmax(x[5:]), kind)
                if p > best:
                    best, where = p, (n, j, i)
    n, j, i = where
    delta[n, 5:, j, i] = c.delta(c.softmax(values[n, 5:, j, i]), kind, 2.0)
    o = sigmoid(values[n, 4, j, i])
    if o < assumed:
        delta[n, 4, j, i] = 5 * (assumed - o) * o * (1 - o)
    loss = TreeRegionLoss(tree=tree, class_scale=2.0, assumed_iou=assumed).double()
    leaf = torch.from_numpy(raw).requires_grad_()
    label = truth([[0, 0, SIDE, SIDE]], [kind], [False])
    total = sum(loss(leaf, decoder, [label], (SIDE, SIDE)).values())
    (gradient,) = torch.autograd.grad(total, leaf)
    np.testing.assert_allclose(gradient.view(values.shape).numpy(), -delta, atol=1e-12)
    assert loss.seen == 1


@pytest.mark.parametrize("seed", range(4))
def test_gradients_with_boxes_are_darknets(seed):
    """All but the classes is YOLOv2's (test_loss.py); the classes' are delta_region_class's."""
    c, tree = CTree(PARENTS), WordTree(PARENTS, class_map=[6, 2, 7])
    raw, decoder = make(seed, tree)
    # Two truths in different cells, whose best anchors are 2 and 0.
    truths = truth([[2, 2, 95, 60], [70, 70, 88, 92]], [0, 2])
    gradients = []
    for loss in (TreeRegionLoss(tree=tree), RegionLoss(num_classes=c.n)):
        leaf = torch.from_numpy(raw).requires_grad_()
        total = sum(loss.double()(leaf, decoder, [truths], (SIDE, SIDE)).values())
        (gradient,) = torch.autograd.grad(total, leaf)
        gradients.append(gradient.view(len(ANCHORS), 5 + c.n, CELLS, CELLS).numpy())
    np.testing.assert_allclose(gradients[0][:, :5], gradients[1][:, :5], atol=1e-12)
    values = raw.reshape(len(ANCHORS), 5 + c.n, CELLS, CELLS)
    delta = np.zeros_like(values)
    for (n, j, i), node in (((2, 0, 1), 6), ((0, 2, 2), 7)):
        delta[n, 5:, j, i] = c.delta(c.softmax(values[n, 5:, j, i]), node, 1.0)
    np.testing.assert_allclose(gradients[0][:, 5:], -delta[:, 5:], atol=1e-12)


def test_joint_batch_is_the_mean_of_its_images():
    tree = WordTree(PARENTS)
    raw = torch.from_numpy(np.concatenate([make(s, tree)[0] for s in range(4)]))
    decoder = make(0, tree)[1]
    truths = [
        truth([[2, 2, 95, 60]], [5]),
        truth([[0, 0, SIDE, SIDE]], [2], [False]),
        truth([], [], []),
        truth([[10, 10, 30, 40]], [7], [True]),
    ]
    loss = TreeRegionLoss(tree=tree).double()
    together = loss(raw, decoder, truths, (SIDE, SIDE))
    assert loss.seen == 4
    alone = [
        TreeRegionLoss(tree=tree).double()(raw[i : i + 1], decoder, truths[i : i + 1], (SIDE, SIDE))
        for i in range(4)
    ]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(x[name] for x in alone) / 4)


def cfg_text(tree: str, nodes: int) -> str:
    """yolo9000.cfg, a sixteenth of the channels."""
    text = "[net]\nwidth=96\nheight=96\n"
    plan = ((2, 1), (4, 1), (8, 3), (16, 3), (32, 5), (64, 5))
    for k, (channels, count) in enumerate(plan):
        text += "[maxpool]\nsize=2\nstride=2\n" * (k > 0)
        for i in range(count):
            out, size = (channels // 2, 1) if i % 2 else (channels, 3)
            text += f"[convolutional]\nbatch_normalize=1\nfilters={out}\nsize={size}\nstride=1\n"
            text += "pad=1\nactivation=leaky\n"
    text += (
        f"[convolutional]\nfilters={3 * (5 + nodes)}\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    )
    anchors = "0.77871, 1.14074, 3.00525, 4.31277, 9.22725, 9.61974"
    return text + (
        f"[region]\nanchors={anchors}\nclasses={nodes}\nnum=3\nsoftmax=1\nrescore=1\nbias_match=1\n"
        f"object_scale=5\nthresh=.6\ntree={tree}\nmap=data/x.map\n"
    )


@pytest.fixture
def files(tmp_path):
    """A tree and its map in data/, a cfg in cfg/, as darknet keeps them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "cfg").mkdir()
    (tmp_path / "data" / "x.tree").write_text(TREE)
    (tmp_path / "data" / "x.map").write_text("6\n2\n7\n")
    (tmp_path / "cfg" / "x.cfg").write_text(cfg_text("data/x.tree", len(PARENTS)))
    return tmp_path


def test_cfg_builds_decodes_and_trains(files):
    model = DarknetDetector(cfg_file=files / "cfg" / "x.cfg", num_classes=3)
    assert model.num_classes == 3
    assert DarknetDetector(cfg_file=files / "cfg" / "x.cfg").num_classes == 8
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    batch = [{"image": image, "instances": truth([[2, 2, 95, 60]], [2])}]
    batch.append({"image": image, "instances": truth([[0, 0, 96, 96]], [1], [False])})
    losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    assert len(found) > 0
    assert int(found.pred_classes.max()) < 3


def test_hand_written_equals_cfg(files):
    cfg = load_config(
        ROOT / "configs" / "yolo9000" / "yolo9000.py",
        [f"model.tree.path={files / 'data' / 'x.tree'}", "model.num_classes=8"],
    )
    written = build(cfg, "model")
    thin = DarknetDetector(cfg_file=files / "cfg" / "x.cfg").eval()
    assert [c.kernel_size for c in written.darknet_layers()] == [
        m.kernel_size for m in thin.backbone.network.layers if hasattr(m, "kernel_size")
    ]
    # The same network, wide.
    text = (files / "cfg" / "x.cfg").read_text()
    for channels in (64, 32, 16, 8, 4, 2):
        text = text.replace(f"filters={channels}\n", f"filters=w{channels * 16}\n")
    (files / "cfg" / "wide.cfg").write_text(text.replace("=w", "="))
    built = DarknetDetector(cfg_file=files / "cfg" / "wide.cfg").eval()
    save_darknet_weights(built.backbone.network, files / "x.weights")
    load_darknet_weights(written, files / "x.weights")
    g = torch.Generator().manual_seed(0)
    item = [{"image": torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=g)}]
    with torch.no_grad():
        a, b = (m.eval()(item)[0]["instances"] for m in (built, written))
    assert len(a) == len(b) > 0
    torch.testing.assert_close(b.scores, a.scores)
    torch.testing.assert_close(b.pred_boxes.tensor, a.pred_boxes.tensor)
    assert torch.equal(a.pred_classes, b.pred_classes)


def test_cfg_errors(files):
    def fails(match: str, text: str = (files / "cfg" / "x.cfg").read_text()) -> None:
        (files / "cfg" / "bad.cfg").write_text(text)
        with pytest.raises(InputError, match=match):
            DarknetDetector(cfg_file=files / "cfg" / "bad.cfg", num_classes=4)

    fails("the map has 3 classes, the data has 4")
    gone = cfg_text("data/y.tree", len(PARENTS))
    fails(r"line \d+, \[region\] .*tree=data/y.tree: there is no such file", gone)
    (files / "data" / "x.tree").write_text("a -1\n")
    fails("the class tree has 1 nodes, expected 8")
    (files / "data" / "x.tree").write_text("a -1\nb 5\n")
    fails("x.tree, line 2: b: its parent is 5")


def test_softmax_with_a_tree(files):
    """[softmax] tree=: the conditional probabilities, as forward_softmax_layer."""
    text = "[net]\nwidth=2\nheight=1\nchannels=4\n[softmax]\ntree=data/x.tree\ntemperature=2\n"
    (files / "cfg" / "s.cfg").write_text(text)
    network = DarknetNetwork(files / "cfg" / "s.cfg")
    x = torch.randn(3, 4, 1, 2)
    c = CTree(PARENTS)
    expected = np.stack([c.softmax(row / 2) for row in x.flatten(1).double().numpy()])
    np.testing.assert_allclose(network(x)[0].numpy(), expected, atol=1e-6)


def test_tiny_learns_a_tree_from_boxes_and_labels(tmp_path):
    """Animals are boxed as such or as cats; dogs are never boxed, only named."""
    (tmp_path / "x.tree").write_text("animal -1\nvehicle -1\ncat 0\ndog 0\n")
    overrides = [f"model.tree.path={tmp_path / 'x.tree'}", "model.num_classes=4"]
    cfg = load_config(ROOT / "configs" / "yolo9000" / "yolo9000_tiny.py", overrides)
    cfg.model.backbone.stages.width = 2
    cfg.model.head.in_channels = [128]
    cfg.model.head.conv_dims = [32]
    torch.manual_seed(0)
    model = build(cfg, "model").train()
    colours = {1: (255, 255, 0), 2: (255, 0, 0), 3: (0, 0, 255)}
    rng = np.random.default_rng(0)

    def picture(kind: int, labelled: bool) -> dict:
        x, y = rng.integers(0, 56, 2).tolist()
        w, h = rng.integers(56, 72, 2).tolist()
        image = torch.full((3, 128, 128), 60.0)
        image[:, y : y + h, x : x + w] = torch.tensor(colours[kind])[:, None, None].float()
        box = [0.0, 0, 128, 128] if labelled else [x, y, x + w, y + h]
        return {"image": image, "instances": truth([box], [kind], [not labelled])}

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(90):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, 2 - step / 45)
        batch = [picture(kind, labelled) for kind, labelled in ((1, 0), (2, 0), (3, 1))]
        # A dog's box is learned as "animal".
        unknown = picture(3, False)
        unknown["instances"].gt_classes[:] = 0
        total = sum(model([*batch, unknown]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    model.eval()
    kinds, overlaps = [], []
    for kind in (1, 2, 3) * 4:
        item = picture(kind, False)
        with torch.no_grad():
            found = model([item])[0]["instances"]
        kinds.append(int(found.pred_classes[0]) == kind)
        overlaps.append(iou(found.pred_boxes.tensor[0], item["instances"].gt_boxes.tensor[0]))
    assert np.mean(kinds) > 0.9
    assert np.mean(overlaps) > 0.4


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    inter = (high - low).clamp(min=0).prod()
    return float(inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter))


def test_half_precision_and_empty_batches(files):
    """bf16, images without anything, labels alone: finite losses and gradients."""
    overrides = [f"model.tree.path={files / 'data' / 'x.tree'}", "model.num_classes=8"]
    cfg = load_config(ROOT / "configs" / "yolo9000" / "yolo9000_tiny.py", overrides)
    cfg.model.backbone.stages.width = 2
    cfg.model.head.in_channels = [128]
    cfg.model.head.conv_dims = [32]
    model = build(cfg, "model")
    image = torch.rand(3, 64, 96) * 255
    for truths in ([], [truth([], [])] * 2, [truth([[0, 0, 96, 64]], [6], [False])] * 2):
        batch = [{"image": image, "instances": t} for t in truths or [truth([[3, 3, 40, 60]], [5])]]
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
        total = sum(losses.values())
        assert total.isfinite()
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = model.eval()(batch)[0]["instances"]
        assert found.scores.dtype == torch.float32


def test_the_damaged_tree_is_refused():
    """darknet's cfg/9k.tree has zero bytes in place of lines; its reader takes it as it is."""
    roots = (ROOT.parent, ROOT.parents[1])
    paths = [root / "shared" / "data" / "darknet" / "names" / "9k.tree" for root in roots]
    path = next((p for p in paths if p.exists()), None)
    if path is None or b"\0" not in path.read_bytes():
        pytest.skip("the damaged file is not on this machine")
    with pytest.raises(InputError, match=r"9k.tree, line 5804: expected a name and the number"):
        read_tree(path)
