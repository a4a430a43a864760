"""Configuration files: loading, overriding, building, saving, all with one-sentence errors.

A LazyConfig file is Python and runs with the rights of whoever starts the program: use only files
that you would run.
"""

import builtins
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from d2proj.darknet.names import read_names
from d2proj.engine.options import check_options
from d2proj.engine.overrides import apply_overrides
from d2proj.errors import InputError


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a LazyConfig file (``.py``, or a saved ``config.yaml``) and apply ``key=value``.

    ``dataset.class_names`` may be a file with a name on each line; it is a list afterwards. The
    result is in OmegaConf's struct mode: code that sets a key which does not exist fails.

    Raises:
        InputError: the file is missing or cannot be run (the line is named); a key is unknown or
            its value of the wrong type; a node is missing.
    """
    path = Path(config_file)
    cfg = read_config(path)
    OmegaConf.set_struct(cfg, True)
    apply_overrides(cfg, overrides)
    try:
        check_options(cfg)
        OmegaConf.to_container(cfg, resolve=True)
        if isinstance(cfg.dataset.get("class_names"), str):
            cfg.dataset.class_names = read_names(cfg.dataset.class_names)
    except OmegaConfBaseException as error:
        raise InputError(f"The config file {path} does not resolve: {_one_line(error)}.") from error
    return cfg


def read_config(path: Path) -> DictConfig:
    """Read a configuration file as it is: its keys may be another version's."""
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise InputError(f"The config file {path} is neither .py (LazyConfig) nor .yaml.")
    if not path.is_file():
        raise InputError(f"The config file {path} does not exist.")
    original_import = builtins.__import__
    try:
        cfg = LazyConfig.load(str(path))
    except InputError:
        raise
    except SyntaxError as error:
        # Detectron2 wraps the error, which has the line, in one that has not.
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        place = f"{cause.filename if cause is error else path}, line {cause.lineno}"
        raise InputError(f"The config file cannot be parsed: {place}: {cause.msg}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"The config file {path} is no YAML: {_one_line(error)}.") from error
    except Exception as error:  # whatever the user's Python raises is the user's error
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in frames if _is_config(frame.filename, path)]
        place = f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else str(path)
        name = type(error).__name__
        raise InputError(f"The config file fails: {place}: {name}: {_one_line(error)}.") from error
    finally:
        # Detectron2's loader leaves its own import function behind when a config file raises.
        builtins.__import__ = original_import
    if not isinstance(cfg, DictConfig):
        raise InputError(f"The config file {path} holds no set of keys.")
    return cfg


def _is_config(frame_file: str, path: Path) -> bool:
    root = path.resolve().parent.parent
    return frame_file == str(path) or Path(frame_file).resolve().is_relative_to(root)


def build(cfg: Any, key: str, **extra: Any) -> Any:
    """Instantiate the node ``key`` (dotted) of ``cfg``; ``extra`` are further arguments.

    Raises:
        InputError: the class does not take these arguments (the class and the reason are named).
    """
    node = OmegaConf.select(cfg, key)
    if extra:
        node = node.copy()
        with open_dict(node):
            node._set_flag("allow_objects", True)
            for name, value in extra.items():
                OmegaConf.update(node, name, value, merge=False, force_add=True)
    try:
        return instantiate(node)
    except InputError:
        raise
    except (TypeError, ValueError, AssertionError, ImportError, OmegaConfBaseException) as error:
        raise InputError(f"'{key}' of the config cannot be built: {_one_line(error)}.") from error


def set_num_classes(cfg: DictConfig, class_names: Sequence[str]) -> None:
    """Enter the data's class names and count in the configuration.

    Raises:
        InputError: the config asks for another number of classes than the data has.
    """
    wanted = cfg.model.get("num_classes")
    if wanted is not None and wanted != len(class_names):
        shown = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
        raise InputError(
            f"model.num_classes is {wanted}, but the data set has {len(class_names)} classes "
            f"({shown}): leave it null to take the data set's."
        )
    with open_dict(cfg):
        cfg.model.num_classes = len(class_names)
        cfg.dataset.class_names = list(class_names)


def save_config(cfg: DictConfig, path: Path) -> None:
    """Write ``config.yaml``, in one rename, so that :func:`load_config` can read it again."""
    temporary = path.with_name(path.stem + ".tmp.yaml")
    LazyConfig.save(cfg, str(temporary))
    temporary.replace(path)


def describe_changes(old: DictConfig, new: DictConfig) -> list[str]:
    """``key: old -> new`` for the leaves in which two configurations differ."""
    before, after = _flatten(old), _flatten(new)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _flatten(node: Any, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for name, value in items:
        if isinstance(value, dict | list):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif name != "_target_":
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
