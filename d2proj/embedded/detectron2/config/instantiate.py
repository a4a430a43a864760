"""From the description of a call to its result."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import _convert_target_to_string, locate

__all__ = ["instantiate"]


def instantiate(cfg: Any) -> Any:
    """Make the calls that a configuration describes.

    A mapping with ``_target_`` (a callable, its dotted name, or a description of a call that
    gives it) is a call of it with the other keys as keyword arguments. Descriptions among the
    arguments, and in lists, are instantiated first; mappings without ``_target_`` and tuples stay
    as they are, and so does everything else.

    Args:
        cfg: the description; every ``instantiate`` makes new objects from it.

    Raises:
        ImportError: a name that cannot be found.
        AssertionError: a ``_target_`` that cannot be called.
    """
    if isinstance(cfg, ListConfig):
        # A ListConfig again, so that callers see one type for the lists of a configuration.
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and _is_dataclass_node(cfg):
        return OmegaConf.to_object(cfg)
    if isinstance(cfg, Mapping) and "_target_" in cfg:
        return _call(cfg)
    return cfg


def _is_dataclass_node(cfg: DictConfig) -> bool:
    return dataclasses.is_dataclass(OmegaConf.get_type(cfg))


def _call(cfg: Mapping[str, Any]) -> Any:
    arguments = {key: instantiate(value) for key, value in cfg.items()}
    target = arguments.pop("_target_")
    name = target
    if isinstance(target, str):
        target = locate(target)
    assert callable(target), f"_target_ {name!r} is not callable"
    try:
        return target(**arguments)
    except TypeError:
        # Mostly a wrong argument, and the error names neither the class nor its place.
        shown = name if isinstance(name, str) else _describe(target)
        logging.getLogger(__name__).error("Error when instantiating %s!", shown)
        raise


def _describe(target: Any) -> str:
    if hasattr(target, "__module__") and hasattr(target, "__qualname__"):
        return _convert_target_to_string(target)
    return repr(target)
