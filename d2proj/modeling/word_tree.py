"""WordTree: classes that are kinds of other classes (Redmon & Farhadi 2017, YOLO9000, section 4).

A network predicts for every node the probability of it given its parent, by a softmax over each
group of siblings; the probability of a node is the product along the path from its root.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from d2proj.errors import InputError
from d2proj.modeling.boxes import full_precision

_LINE = re.compile(r"(\S+)[ \t]+(-?\d{1,9})")
_MOST_BYTES = 64 << 20


class WordTree(nn.Module):
    """A forest of classes; siblings are numbered in a row, parents before their children.

    Args:
        parents: of each of the n nodes the number of its parent, -1 for a root.
        names: of the nodes; their numbers if None.
        class_map: nodes that stand for the classes 0, 1, ... of a data set; None: its classes are
            the nodes.

    Raises:
        ValueError: there are no nodes, a parent does not come before its child, or siblings are
            not in a row; the node is named.
    """

    parents: Tensor
    group: Tensor
    child_group: Tensor
    jumps: Tensor
    class_map: Tensor | None

    def __init__(
        self,
        parents: Sequence[int],
        names: Sequence[str] | None = None,
        class_map: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        problem = find_problem(parents)
        if problem is not None:
            raise ValueError(f"node {problem[0]} of the class tree: {problem[1]}")
        self.names = [str(i) for i in range(len(parents))] if names is None else list(names)
        starts = [i for i, p in enumerate(parents) if i == 0 or p != parents[i - 1]]
        #: First node of each group of siblings, and the one after its last.
        self.bounds = list(zip(starts, [*starts[1:], len(parents)], strict=True))
        group = [g for g, (first, end) in enumerate(self.bounds) for _ in range(first, end)]
        children = [-1] * len(parents)
        for g, first in enumerate(starts):
            if parents[first] >= 0:
                children[parents[first]] = g
        for name, values in (("parents", parents), ("group", group), ("child_group", children)):
            self.register_buffer(name, torch.tensor(list(values)), persistent=False)
        # jumps[k] is the ancestor 2^k above; n stands for "above the root" and is above itself.
        count = len(parents)
        up = torch.tensor([*(count if p < 0 else p for p in parents), count])
        jumps = []
        while bool((up != count).any()):
            jumps.append(up)
            up = up[up]
        stacked = torch.stack(jumps) if jumps else up.new_empty(0, count + 1)
        self.register_buffer("jumps", stacked, persistent=False)
        nodes = None if class_map is None else torch.tensor(list(class_map))
        self.register_buffer("class_map", nodes, persistent=False)

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self) if self.class_map is None else len(self.class_map)

    def nodes(self, classes: Tensor) -> Tensor:
        """The nodes of classes of the data (int64, any shape)."""
        return classes if self.class_map is None else self.class_map[classes]

    def path(self, node: int) -> list[int]:
        """The node and its ancestors, up to a root."""
        found = []
        while node >= 0:
            found.append(node)
            node = int(self.parents[node])
        return found

    def log_conditional(self, logits: Tensor) -> Tensor:
        """Logarithms of each node's probability given its parent: (..., n) -> (..., n)."""
        logits = full_precision(logits)
        group = self.group.expand(logits.shape)
        with torch.no_grad():
            shape = (*logits.shape[:-1], len(self.bounds))
            low = logits.new_full(shape, -torch.inf)
            top = low.scatter_reduce(-1, group, logits, "amax")
        logits = logits - top[..., self.group]
        total = torch.zeros_like(top).scatter_add(-1, group, logits.exp())
        return logits - total.log()[..., self.group]

    def log_probability(self, logits: Tensor) -> Tensor:
        """Logarithms of each node's probability: (..., n) -> (..., n)."""
        log_p = self.log_conditional(logits)
        log_p = torch.cat([log_p, log_p.new_zeros((*log_p.shape[:-1], 1))], -1)
        # After step k a node has the sum over itself and its 2^(k + 1) - 1 nearest ancestors.
        for up in self.jumps:
            log_p = log_p + log_p[..., up]
        return log_p[..., :-1]

    def log_probability_of(self, logits: Tensor, node: int) -> Tensor:
        """The same of one node: (..., n) -> (...); only the groups along its path are touched."""
        total = full_precision(logits).new_zeros(logits.shape[:-1])
        for ancestor in self.path(node):
            first, end = self.bounds[int(self.group[ancestor])]
            siblings = full_precision(logits[..., first:end])
            total = total + siblings[..., ancestor - first] - siblings.logsumexp(-1)
        return total

    @torch.no_grad()
    def descend(self, probability: Tensor, threshold: float) -> Tensor:
        """From the roots down, to the most probable child, as long as that is probable enough.

        Args:
            probability: (M, n) of the nodes (not given their parents).
            threshold: a child is entered if its probability exceeds this; the best root always is.

        Returns:
            (M,) int64, the nodes arrived at.
        """
        rows = len(probability)
        # The best node of each group; the first one of equals, as darknet.
        group = self.group.expand(rows, -1)
        shape = (rows, len(self.bounds))
        top = probability.new_full(shape, -torch.inf).scatter_reduce(1, group, probability, "amax")
        number = torch.arange(len(self), device=probability.device).expand(rows, -1)
        number = torch.where(probability == top[:, self.group], number, len(self))
        best = number.new_full(shape, len(self)).scatter_reduce(1, group, number, "amin")

        every = torch.arange(rows, device=probability.device)
        # Probabilities that are no numbers have no best node.
        node = best[:, 0].clamp(max=len(self) - 1)
        active = probability[every, node] > threshold
        while bool(active.any()):
            below = self.child_group[node]
            child = best[every, below.clamp(min=0)].clamp(max=len(self) - 1)
            active = active & (below >= 0) & (probability[every, child] > threshold)
            node = torch.where(active, child, node)
        return node


def find_problem(parents: Sequence[int]) -> tuple[int, str] | None:
    """The first node at which the numbers make no tree, and what is wrong with it."""
    if not len(parents):
        return 0, "there is none"
    seen: set[int] = set()
    for node, parent in enumerate(parents):
        if parent >= len(parents) or parent < -1:
            return node, f"its parent is {parent}, but nodes are numbered 0 to {len(parents) - 1}"
        if parent >= node:
            what = "itself" if parent == node else f"{parent}, which comes after it"
            return node, f"its parent is {what}: parents must come before their children"
        if node == 0 or parent != parents[node - 1]:
            if parent in seen:
                of = "the roots" if parent < 0 else f"the children of {parent}"
                return node, f"{of} must stand in a row, but others are between them"
            seen.add(parent)
    return None


def load_tree(
    *, path: str | Path | None, class_map: str | Path | None, num_classes: int
) -> WordTree:
    """A class tree for a data set of so many classes.

    Args:
        path: darknet's ``.tree`` file; None: the classes are all roots, none is a kind of another.
        class_map: darknet's ``.map`` file, with the node of each class of the data; None: the
            classes are the nodes.
        num_classes: of the data.

    Raises:
        InputError: a file is no good, or of another number of classes.
    """
    if path is None:
        # The map, though it changes nothing, asks for scores of all classes instead of a descent.
        return WordTree([-1] * num_classes, class_map=range(num_classes))
    tree = read_tree(path)
    if class_map is not None:
        tree = WordTree(tree.parents.tolist(), tree.names, read_map(class_map, tree))
    if tree.num_classes != num_classes:
        what = f"the class tree {path}" if class_map is None else f"the class map {class_map}"
        raise InputError(
            f"{what} has {tree.num_classes} classes, the model {num_classes}: name a map "
            "(model.tree.class_map) with one line, a node, for each class of the data"
        )
    return tree


def number_of_nodes(tree: WordTree) -> int:
    """n, for configs."""
    return len(tree)


def read_tree(path: str | Path) -> WordTree:
    """Read darknet's ``.tree`` file: a line for each node, its name and its parent's number or -1.

    Raises:
        InputError: it cannot be read or is no tree; the line is named.
    """
    names, parents = [], []
    lines = _text(path, "class tree").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            if not any(rest.strip() for rest in lines[number - 1 :]):
                break
            raise InputError(
                f"{path}, line {number}: expected a name and the number of its parent, got "
                f"{line[:60]!r}"
            )
        names.append(match[1])
        parents.append(int(match[2]))
    problem = find_problem(parents)
    if problem is not None and not parents:
        raise InputError(f"{path} is no class tree: it is empty")
    if problem is not None:
        raise InputError(f"{path}, line {problem[0] + 1}: {names[problem[0]]}: {problem[1]}")
    return WordTree(parents, names)


def read_map(path: str | Path, tree: WordTree) -> list[int]:
    """Read darknet's ``.map`` file: for each class of a data set, in order, the number of its node.

    Raises:
        InputError: it cannot be read, or a line is no node of the tree.
    """
    nodes = []
    lines = _text(path, "class map").split()
    for number, word in enumerate(lines, start=1):
        if not re.fullmatch(r"\d{1,9}", word) or int(word) >= len(tree):
            raise InputError(
                f"{path}, entry {number}: expected a node of the tree, 0 to {len(tree) - 1}, got "
                f"{word[:30]!r}"
            )
        nodes.append(int(word))
    if not nodes:
        raise InputError(f"{path} is no class map: it is empty")
    return nodes


def _text(path: str | Path, kind: str) -> str:
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path} is no {kind}: it has {size} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no {kind}: it is not text") from None
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}: {error.strerror or error}") from None
