"""The class names of a model without its data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2proj.checkpoint.files import read_file
from d2proj.darknet.plan import plan_network
from d2proj.engine.config import read_config
from d2proj.errors import InputError
from d2proj.evaluation.coco_classes import coco_classes


@dataclass(frozen=True)
class ClassNames:
    """Names and COCO category ids; index = class index of the model."""

    names: list[str]
    ids: list[int]


def find_class_names(cfg: DictConfig, weights: str) -> ClassNames:
    """Name the classes, and enter their number in ``cfg.model.num_classes``.

    The first of these that says anything: ``dataset.class_names``; the checkpoint, where this
    project wrote it; ``config.yaml`` beside the weights; COCO's names for 80 classes; numbers.
    Without ``model.num_classes`` a darknet cfg file (``model.cfg_file``) says how many there are.

    Raises:
        InputError: the number of classes is known from nowhere, or two sources differ.
    """
    recorded = _recorded(weights)
    wanted, of_file = cfg.model.get("num_classes"), None
    if wanted is None and cfg.model.get("cfg_file"):
        of_file = cfg.model.cfg_file
        wanted = plan_network(of_file).num_classes
    names, source = cfg.dataset.get("class_names"), "dataset.class_names"
    if not names and recorded:
        names, source = recorded["class_names"], f"the checkpoint {weights}"
    beside = Path(weights).with_name("config.yaml")
    if not names and beside.is_file():
        names, source = OmegaConf.select(read_config(beside), "dataset.class_names"), str(beside)
    if not names and wanted is None:
        raise InputError(
            f"The number of classes is not recorded in {weights}: set model.num_classes=N or "
            "dataset.class_names=[...]."
        )
    if not names:
        coco, ids = coco_classes()
        if wanted == len(coco):
            return ClassNames(coco, ids)
        names = [f"class {i}" for i in range(wanted)]
    names = [str(name) for name in names]
    if wanted is not None and wanted != len(names):
        if of_file:
            raise InputError(
                f"{of_file} is for {wanted} classes, but {source} has {len(names)} classes."
            )
        raise InputError(
            f"model.num_classes is {wanted}, but {source} has {len(names)} classes: leave it null."
        )
    cfg.model.num_classes = len(names)
    ids = list(range(1, len(names) + 1))
    if recorded and list(recorded["class_names"]) == names:
        ids = [int(i) for i in recorded["category_ids"]]
    return ClassNames(names, ids)


def _recorded(weights: str) -> Mapping[str, Any] | None:
    content = read_file(weights).content
    known = isinstance(content, Mapping) and {"class_names", "category_ids"} <= content.keys()
    return content if known else None
