"""YOLO9000."""

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from d2proj.errors import InputError
from d2proj.modeling.losses.yolo9000 import TreeRegionLoss
from d2proj.modeling.meta_arch.base import register
from d2proj.modeling.meta_arch.yolo import YOLO
from d2proj.modeling.word_tree import WordTree


@register
class YOLO9000(YOLO):
    """YOLOv2 whose classes form a tree (Redmon & Farhadi 2017, section 4).

    Args:
        tree: of the classes. Decoders and losses have it from this one place of a config
            (``tree="${...tree}"``); here its size is checked and its names are known.
        **yolo: see :class:`~d2proj.modeling.meta_arch.yolo.YOLO`.

    Raises:
        ValueError: the tree is for another number of classes than the model.
    """

    def __init__(self, *, tree: WordTree, **yolo: Any) -> None:
        super().__init__(**yolo)
        if tree.num_classes != self.num_classes:
            raise ValueError(
                f"the class tree is for {tree.num_classes} classes, the model has "
                f"{self.num_classes}"
            )
        self.tree = tree

    @property
    def num_labels(self) -> int:
        """Labels of the ground truth are 0 to one less: the classes, then those of images alone."""
        extra = 0 if self.tree.label_map is None else len(self.tree.label_map) - self.num_classes
        return self.num_classes + extra

    def learn_labels(self, class_names: Sequence[str], label_names: Sequence[str]) -> None:
        """Prepare for images with labels and without boxes.

        Args:
            class_names: of the data's classes.
            label_names: of further labels, each the name of a node.

        Raises:
            InputError: a name is none, or one of several nodes.
        """
        count = Counter(self.tree.names)
        for name in label_names:
            if count[name] != 1:
                raise InputError(_unknown(name, count[name], [*class_names, *count]))
        numbers = {name: node for node, name in enumerate(self.tree.names)}
        nodes = [numbers[name] for name in label_names]
        self.tree.set_labels(nodes)
        for loss in self.level_losses:
            if not isinstance(loss, TreeRegionLoss):
                raise InputError(
                    f"{type(loss).__name__} cannot learn from labels without boxes, TreeRegionLoss "
                    "can."
                )
            loss.tree.set_labels(nodes)


def _unknown(name: str, count: int, known: Sequence[str]) -> str:
    what = f"dataset.train.classification has a folder {name!r}, which names"
    if count:
        return f"{what} {count} nodes of the class tree."
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{what} no class of the data and no node of the class tree{hint}"
