"""The data set formats, and ``load_dataset``: the ``dataset`` node of a configuration, read."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from omegaconf import OmegaConf

from d2proj.data.datasets import coco, digits, voc, yolo
from d2proj.data.datasets.classification import add_classification
from d2proj.data.datasets.raw import RawDataset, finish
from d2proj.data.detection_data import DetectionData
from d2proj.errors import InputError

Split = Literal["train", "val"]

_READERS: dict[str, Callable[[dict[str, Any], str], RawDataset]] = {
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "digits": digits.read,
}
# The keys of every format, and those that each understands; a key that only has sub-keys per split
# is a dict.
_COMMON: dict[str, Any] = {"format": None, "class_names": None, "train": {"classification": None}}
_KEYS: dict[str, dict[str, Any]] = {
    "coco": coco.KEYS,
    "voc": voc.KEYS,
    "yolo": yolo.KEYS,
    "digits": digits.KEYS,
}


def dataset_defaults() -> dict[str, Any]:
    """The ``dataset`` node with every key of every format, each unset.

    A configuration file starts from it, so that every key can be given on the command line.
    """
    tree: dict[str, Any] = {"format": None, "class_names": None, "train": {}, "val": {}}
    for keys in (*_KEYS.values(), _COMMON):
        for key, value in keys.items():
            if isinstance(value, Mapping):
                tree[key].update(value)
            else:
                tree[key] = value
    return tree


def has_split(dataset: Mapping[str, Any], split: Split) -> bool:
    """Whether the node names any data for this split (a run without validation has none)."""
    node = _without_classification(_plain(dataset))
    if node.get("format") == "digits":
        return True
    if node.get("format") == "yolo" and (node.get("yaml") or node.get("data")):
        return split in yolo.splits_of(node)
    return any(value is not None for value in (node.get(split) or {}).values())


def load_dataset(
    dataset: Mapping[str, Any],
    split: Split,
    *,
    on_bad_image: str = "raise",
    check_images: bool = True,
) -> DetectionData:
    """Read one split of a data set, check it, and register it with Detectron2's catalogs.

    Args:
        dataset: the ``dataset`` node: ``format`` and that format's keys (docs/data.md lists them);
            keys set to None count as absent.
        split: "train" or "val".
        on_bad_image: "raise" or "skip": what to do about image files that are missing.
        check_images: look up every image file in its folder. Only a benchmark that has no
            pictures turns it off.

    Raises:
        InputError: an unknown format or key, a path that does not exist, a file that is not in
            the format that was announced, or inconsistent ids; named in one sentence.
    """
    node = _plain(dataset)
    format_name = node.get("format")
    if format_name not in _READERS:
        expected = ", ".join(_READERS)
        raise InputError(f"dataset.format must be one of {expected}, not {format_name!r}.")
    _check_keys(node, format_name)
    if on_bad_image not in ("raise", "skip"):
        raise InputError(f"data.on_bad_image must be raise or skip, not {on_bad_image!r}.")
    raw = _READERS[format_name](_without_classification(node), split)
    digest = zlib.crc32(repr(sorted(node.items())).encode())
    data = finish(
        raw,
        name=f"{format_name}_{split}_{digest:08x}",
        class_names=node.get("class_names"),
        training=split == "train",
        skip_missing=on_bad_image == "skip",
        check_images=check_images,
    )
    pictures = node.get("train", {}).get("classification")
    if split == "train" and pictures is not None:
        add_classification(data, pictures)
    data.register()
    return data


def _plain(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The node as plain containers without its unset keys."""
    tree = (
        OmegaConf.to_container(dataset, resolve=True) if OmegaConf.is_config(dataset) else dataset
    )
    if not isinstance(tree, Mapping):
        raise InputError(f"dataset must be a set of keys, not {tree!r}.")
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and key in ("train", "val"):
            value = {name: entry for name, entry in value.items() if entry is not None}
        if value is not None and value != {}:
            plain[str(key)] = value
    return plain


def _without_classification(node: dict[str, Any]) -> dict[str, Any]:
    """The node as the formats know it."""
    if not isinstance(node.get("train"), Mapping):
        return node
    train = {key: value for key, value in node["train"].items() if key != "classification"}
    return {**node, "train": train}


def _check_keys(node: dict[str, Any], format_name: str) -> None:
    own = _KEYS[format_name]
    known = {**_COMMON, **own, "train": {**own.get("train", {}), **_COMMON["train"]}}
    for key, value in node.items():
        nested = known.get(key)
        if key not in known:
            unknown = key
        elif isinstance(nested, Mapping) and not isinstance(value, Mapping):
            raise InputError(
                f"dataset.{key} must have keys ({', '.join(nested)}), not the value {value!r}."
            )
        elif isinstance(nested, Mapping) and set(value) - set(nested):
            unknown = f"{key}.{min(set(value) - set(nested))}"
        else:
            continue
        raise InputError(
            f"dataset.{unknown} is not a key of format {format_name}, "
            f"which knows {', '.join(_flat(known))}."
        )


def _flat(keys: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for key, value in keys.items():
        names += [f"{key}.{sub}" for sub in value] if isinstance(value, Mapping) else [key]
    return names
