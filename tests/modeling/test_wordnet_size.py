"""WordTree, losses and labels on a tree of the size and shape of darknet's 9k.tree."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2proj.engine.config import build, load_config
from d2proj.errors import InputError
from d2proj.modeling.word_tree import read_tree

ROOT = Path(__file__).resolve().parents[2]
NODES = 9418
# Nodes at each depth: 9k.tree's shape, as far as the file in the shared data can be read.
LEVELS = [4, 15, 58, 151, 460, 854, 1351, 1808, 1806, 1377, 861, 447, 170, 50, 6]


def wordnet_like(seed: int) -> tuple[list[str], list[int]]:
    """Breadth first; most nodes are leaves or have few children, some have dozens."""
    rng = np.random.default_rng(seed)
    parents, first = [-1] * LEVELS[0], 0
    for above, count in pairwise(LEVELS):
        weights = rng.pareto(1.0, above)
        chosen = rng.choice(above, count, p=weights / weights.sum())
        parents += np.sort(first + chosen).tolist()
        first += above
    return [f"n{i * 7919:08d}" for i in range(len(parents))], parents


@pytest.fixture(scope="module")
def tree_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names, parents = wordnet_like(0)
    path = tmp_path_factory.mktemp("tree") / "9k.tree"
    path.write_text("".join(f"{n} {p}\n" for n, p in zip(names, parents, strict=True)))
    return path


def reference(logits: np.ndarray, parents: list[int]) -> np.ndarray:
    """Probability of each node: a softmax over each node's siblings, times its parent's."""
    siblings: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        siblings.setdefault(parent, []).append(node)
    conditional = np.empty_like(logits)
    for group in siblings.values():
        e = np.exp(logits[group] - logits[group].max())
        conditional[group] = e / e.sum()
    probability = conditional.copy()
    for node, parent in enumerate(parents):
        if parent >= 0:
            probability[node] *= probability[parent]
    return probability


def test_probabilities(tree_file: Path) -> None:
    names, parents = wordnet_like(0)
    tree = read_tree(tree_file)
    assert len(tree) == NODES
    assert tree.names == names
    assert max(len(tree.path(node)) for node in range(NODES)) == len(LEVELS)
    logits = np.random.default_rng(1).normal(0, 3, NODES)
    expected = reference(logits, parents)
    found = tree.log_probability(torch.from_numpy(logits)).exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    for node in (0, 17, 5000, NODES - 1):
        one = tree.log_probability_of(torch.from_numpy(logits), node).exp().item()
        assert one == pytest.approx(expected[node], rel=1e-10)
    # Down from the roots, to the best child while it is probable enough.
    for threshold in (0.5, 0.05, 1e-6):
        node = int(expected[: LEVELS[0]].argmax())
        while expected[node] > threshold:
            children = [child for child in range(NODES) if parents[child] == node]
            best = max(children, key=lambda child: expected[child], default=None)
            if best is None or expected[best] <= threshold:
                break
            node = best
        descended = tree.descend(torch.from_numpy(expected)[None], threshold)
        assert descended.tolist() == [node]


def test_a_joint_batch(tree_file: Path, tmp_path: Path) -> None:
    """Boxes of 80 mapped classes, folders named by any other node: one training step."""
    names, _ = wordnet_like(0)
    (tmp_path / "x.map").write_text("".join(f"{node}\n" for node in range(100, 180)))
    overrides = [
        f"model.tree={{path: {tree_file}, class_map: {tmp_path / 'x.map'}}}",
        "model.num_classes=80",
        "model.backbone.stages.width=1",
        "model.head.in_channels=[64]",
        "model.head.conv_dims=[0]",
    ]
    model = build(load_config(ROOT / "configs/yolo9000/yolo9000_tiny.py", overrides), "model")
    assert model.num_labels == 80
    start = time.perf_counter()
    model.learn_labels([f"class {i}" for i in range(80)], names[::-1])
    assert time.perf_counter() - start < 2  # 0.01 s
    assert model.num_labels == 80 + NODES
    labels = torch.tensor([79, 80, 80 + NODES - 1])
    assert model.level_losses[0].tree.nodes(labels).tolist() == [179, NODES - 1, 0]

    def sample(label: int, has_box: bool) -> dict[str, object]:
        truth = Instances((64, 64))
        truth.gt_boxes = Boxes(torch.tensor([[8.0, 8, 50, 50]]))
        truth.gt_classes = torch.tensor([label])
        if not has_box:
            truth.gt_has_box = torch.tensor([False])
        return {"image": torch.rand(3, 64, 64) * 255, "instances": truth}

    losses = model.train()([sample(3, True), sample(80 + 5, False)])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with pytest.raises(InputError, match=f"has the label {80 + NODES}, but the model"):
        model([sample(80 + NODES, False)])
    # What it finds are the 80 classes.
    with torch.no_grad():
        found = model.eval()([sample(3, True)])[0]["instances"]
    assert (found.pred_classes < 80).all()
    with pytest.raises(InputError, match=rf"{names[9]}x'.*did you mean '{names[9]}'\?"):
        model.learn_labels([], [names[9] + "x"])


def test_darknets_9k_tree_is_damaged(shared_data: Path) -> None:
    """704 lines are zero bytes: darknet reads 8714 nodes with wrong parents, and says nothing."""
    path = shared_data / "darknet" / "names" / "9k.tree"
    if not path.exists() or b"\0" not in path.read_bytes():
        pytest.skip("the damaged file is not on this machine")
    with pytest.raises(InputError, match=r"9k\.tree, line 5804: expected a name and the number"):
        read_tree(path)
