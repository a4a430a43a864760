"""Configuration files in Python, and the descriptions of calls that they are made of."""

import builtins
import dataclasses
import inspect
import logging
import os
import pickle
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from detectron2.config.code import to_code
from detectron2.config.overrides import parse_override, update
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string

__all__ = ["LazyCall", "LazyConfig"]

Keys = None | str | tuple[str, ...]


class LazyCall:
    """``LazyCall(f)(a=1)`` describes the call ``f(a=1)``, which ``instantiate`` makes later.

    The description is a ``DictConfig`` of the arguments, which can be changed, and of
    ``_target_``. Arguments are given by keyword only.
    """

    def __init__(self, target: Callable[..., Any] | str | Mapping[str, Any]) -> None:
        """Choose what to call.

        Args:
            target: a callable, its dotted name, or the description of a call that gives it.

        Raises:
            TypeError: something else.
        """
        if not (callable(target) or isinstance(target, str | Mapping)):
            raise TypeError(f"what LazyCall describes must be callable, got {target!r}")
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        """Describe a call with these arguments."""
        target = self._target
        if dataclasses.is_dataclass(target):
            # OmegaConf takes a dataclass for the schema of a node, not for a value.
            target = _convert_target_to_string(target)
        content = {**kwargs, "_target_": target}
        return DictConfig(content=content, flags={"allow_objects": True})


class LazyConfig:
    """Reads, changes and writes configurations. A Python configuration runs as the user."""

    @staticmethod
    def load(filename: str, keys: Keys = None) -> Any:
        """Read a configuration file.

        A Python file is executed anew each time. In it, ``from .other import name`` executes
        ``other.py`` beside it; only files can be imported so, no folders, and the dicts that come
        out are configurations of the importer's own.

        Args:
            filename: ``.py``, ``.yaml`` or ``.yml``; relative to the working directory.
            keys: a name, or several; default: all names that hold configurations and do not begin
                with ``_``.

        Returns:
            The value of one key; a tuple, for several; a ``DictConfig``, for all.

        Raises:
            ValueError: the file's name ends otherwise.
            ImportError: a relative import of something else than a configuration file.
            KeyError: a key is missing.
            OSError, SyntaxError, yaml.YAMLError: the file cannot be read.
        """
        extension = os.path.splitext(filename)[1]
        if extension == ".py":
            names: Mapping[str, Any] = _execute(filename, name="__lazy_config__")
        elif extension in (".yaml", ".yml"):
            names = _load_yaml(filename)
        else:
            raise ValueError(f"config file {filename} is neither a .py nor a .yaml file")
        if isinstance(keys, str):
            return _as_config(names[keys])
        if keys is not None:
            return tuple(_as_config(names[key]) for key in keys)
        if extension != ".py":
            return names
        visible = {
            key: _as_config(value)
            for key, value in names.items()
            if isinstance(value, dict | DictConfig | ListConfig) and not key.startswith("_")
        }
        return DictConfig(visible, flags={"allow_objects": True})

    @staticmethod
    def load_rel(filename: str, keys: Keys = None) -> Any:
        """``load`` a file whose path is relative to the source file that calls this function."""
        frame = inspect.currentframe()
        assert frame is not None, "the interpreter keeps no frames"
        assert frame.f_back is not None, "load_rel has to be called from a file"
        caller = frame.f_back.f_code.co_filename
        assert not caller.startswith("<"), "load_rel has to be called from a file"
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: DictConfig | ListConfig, filename: str) -> None:
        """Write a configuration to a yaml file that ``load`` reads.

        Classes and functions to call are written by name. Where something cannot be written to
        yaml in a way that can be read again, such as a lambda, a warning says so and the
        configuration is also written to ``<filename>.pkl`` with cloudpickle.

        Args:
            cfg: the configuration.
            filename: where to.
        """
        logger = logging.getLogger(__name__)
        plain = _named_targets(_to_plain(cfg))
        try:
            text = yaml.dump(plain, default_flow_style=None, allow_unicode=True, width=9999)
        except (yaml.YAMLError, TypeError, ValueError, AttributeError, pickle.PickleError) as error:
            logger.warning("The config cannot be written to %s: %s", filename, error)
        else:
            with PathManager.open(filename, "w") as file:
                file.write(text)
            try:
                yaml.unsafe_load(text)
                return
            except (yaml.YAMLError, TypeError) as error:
                cause = str(error).replace("\n", " ")
                logger.warning("%s can be read by you but not loaded again: %s", filename, cause)
        pickled = filename + ".pkl"
        try:
            content = cloudpickle.dumps(cfg)
        except (TypeError, AttributeError, pickle.PickleError) as error:
            logger.warning("The config cannot be pickled either: %s", error)
            return
        with PathManager.open(pickled, "wb") as file:
            file.write(content)
        logger.warning("The config was saved with cloudpickle to %s", pickled)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
        """Change a configuration in place.

        Args:
            cfg: the configuration.
            overrides: ``a.b=value``; see ``overrides.py`` for what a value can be. Mappings are
                merged into mappings; a key that does not exist is created, unless the
                configuration has OmegaConf's struct flag.

        Returns:
            The same object.

        Raises:
            ValueError: a string that does not follow the grammar.
            KeyError: a key leads through a value that has no keys.
            omegaconf.errors.OmegaConfBaseException: OmegaConf refuses the change.
        """
        for override in overrides:
            update(cfg, *parse_override(override))
        return cfg

    @staticmethod
    def to_py(cfg: DictConfig | ListConfig, prefix: str = "cfg.") -> str:
        """The configuration as Python-like assignments, to be read rather than run.

        Args:
            cfg: the configuration.
            prefix: what the names begin with.
        """
        return to_code(_to_plain(cfg), prefix)


def _as_config(value: Any) -> Any:
    return DictConfig(value, flags={"allow_objects": True}) if isinstance(value, dict) else value


def _load_yaml(filename: str) -> Any:
    with PathManager.open(filename) as file:
        # Not the safe loader: save writes classes by name. A configuration names what will be
        # called anyway, so it has to be trusted like code.
        content = yaml.unsafe_load(file)
    return OmegaConf.create({} if content is None else content, flags={"allow_objects": True})


def _execute(filename: str, name: str) -> dict[str, Any]:
    """Run a Python configuration and return its names.

    Its relative imports are served by an ``__import__`` in its own ``__builtins__``: nothing
    outside of the file is patched, whatever happens in it.
    """
    with PathManager.open(filename) as file:
        source = file.read()
    own_builtins = {**vars(builtins), "__import__": _make_import(filename)}
    names: dict[str, Any] = {"__file__": filename, "__name__": name, "__builtins__": own_builtins}
    exec(compile(source, filename, "exec"), names)
    return names


def _make_import(importer: str) -> Callable[..., Any]:
    def import_config(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> Any:
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist, level)
        path = _find_relative(importer, name, level)
        if "*" in fromlist:
            raise ImportError(f"{importer} imports * from {path}: name what it needs")
        names = _execute(path, name=f"__lazy_config__.{name}")
        module = types.ModuleType(names["__name__"])
        module.__file__ = path
        for key in fromlist:
            if key not in names:
                raise ImportError(f"{importer} cannot import {key!r}: {path} does not define it")
            setattr(module, key, _as_config(names[key]))
        return module

    return import_config


def _find_relative(importer: str, name: str, level: int) -> str:
    folder = os.path.dirname(importer)
    for _ in range(level - 1):
        folder = os.path.dirname(folder) if folder else ".."
    target = os.path.join(folder, *name.split("."))
    if not name or (PathManager.isdir(target) and not PathManager.isfile(target + ".py")):
        raise ImportError(
            f"{importer} has a relative import of the folder {target or '.'}: a config file can "
            "import only from other config files"
        )
    path = target + ".py"
    if not PathManager.isfile(path):
        raise ImportError(f"{importer} imports from {path}, which does not exist")
    return path


def _to_plain(cfg: DictConfig | ListConfig) -> Any:
    # Dataclass nodes become the dataclass again; interpolations stay as they are written.
    return OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)


def _named_targets(value: Any) -> Any:
    """Plain containers with every callable ``_target_`` replaced by its dotted name."""
    if isinstance(value, list):
        return [_named_targets(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key: _named_targets(item) for key, item in value.items()}
    target = named.get("_target_")
    if callable(target):
        named["_target_"] = _convert_target_to_string(target)
    return named
