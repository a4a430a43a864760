"""YOLO9000."""

from typing import Any

from d2proj.modeling.meta_arch.base import register
from d2proj.modeling.meta_arch.yolo import YOLO
from d2proj.modeling.word_tree import WordTree


@register
class YOLO9000(YOLO):
    """YOLOv2 whose classes form a tree (Redmon & Farhadi 2017, section 4).

    Args:
        tree: of the classes. Decoders and losses have it from this one place of a config
            (``tree="${...tree}"``); here its size is checked.
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
