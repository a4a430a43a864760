"""``key=value`` on the command line: checked against the configuration, with suggestions.

A key must exist (or be an argument of the class that the node calls) and keep the type it has, so
that a slip is an error instead of a run that quietly ignores it.
"""

import ast
import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from d2proj.engine.options import NODES, TYPE_NAMES, Option, matches_type
from d2proj.errors import InputError


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Change ``cfg`` in place by ``key=value`` strings.

    Keys are dotted (``train.amp.enabled``, ``data.train_augmentations[0].prob``); values are YAML
    scalars, lists and mappings (``1e-3``, ``true``, ``null``, ``[1, 2]``, ``"a string"``).

    Raises:
        InputError: no ``=``, an unknown key (the nearest key is named), or a value of another type.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"'{override}' is not of the form key=value.")
        _set(cfg, _split_key(key.strip()), parse_value(text), text.strip())


def parse_value(text: str) -> Any:
    """The value of an override's right side: YAML, or a Python tuple; else the text itself."""
    text = text.strip()
    if text in ("", "None"):
        return None if text else ""
    if text.startswith("(") and text.endswith(")"):
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            return text
    try:
        plain = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except (YAMLError, OmegaConfBaseException):
        if text[0] in "[{\"'":
            raise InputError(
                f"The value {text} cannot be read (check its brackets and quotes)."
            ) from None
        return text
    return plain["value"] if isinstance(plain, dict) else text


def _split_key(key: str) -> list[str | int]:
    parts: list[str | int] = []
    for name in re.sub(r"\[(\d+)\]", r".\1", key).split("."):
        parts.append(int(name) if name.isdigit() else name)
    return parts


def _set(cfg: DictConfig, path: list[str | int], value: Any, text: str) -> None:
    node: Any = cfg
    for depth in range(len(path) - 1):
        node = _child(cfg, node, path, depth)
    name = path[-1]
    if isinstance(node, DictConfig) and name not in node and _is_argument(node, name):
        with open_dict(node):
            node[name] = value
        return
    if not _has(node, name):
        raise _unknown(cfg, path)
    option = NODES.get(str(path[0]), {}).get(_join(path[1:]))
    if option is not None:
        node[name] = _by_option(option, value, text, path)
        return
    # A link such as ${..num_classes} is judged by the kind of what it points to.
    old = None if OmegaConf.is_missing(node, name) else node[name]
    if isinstance(old, DictConfig) and isinstance(value, dict) and "_target_" not in value:
        for key, part in value.items():
            _set(cfg, [*path, key], part, str(part))
        return
    node[name] = _converted(old, value, text, path)


def _by_option(option: Option, value: Any, text: str, path: list[str | int]) -> Any:
    """``value`` as this key of ``train``, ``data`` or ``eval`` must have it."""
    if option.kind is str and isinstance(value, bool | int | float):
        value = text
    if option.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5
    if not (isinstance(value, str) and "${" in value):
        expected = option.problem(value)
        if expected:
            raise InputError(f"{_join(path)} must be {expected}, not '{text}'.")
    return value


def _child(cfg: DictConfig, node: Any, path: list[str | int], depth: int) -> Any:
    name = path[depth]
    if not _has(node, name):
        raise _unknown(cfg, path)
    child = node[name]
    if not isinstance(child, DictConfig | ListConfig):
        key = _join(path[: depth + 1])
        raise InputError(f"'{key}' is a value ({child!r}), it has no keys below it.")
    return child


def _has(node: Any, name: str | int) -> bool:
    if isinstance(node, ListConfig):
        return isinstance(name, int) and name < len(node)
    return isinstance(node, DictConfig) and name in node


def _is_argument(node: DictConfig, name: str | int) -> bool:
    """Whether the class that this node calls takes ``name``, though the config leaves it unset."""
    target = node.get("_target_")
    if target is None or not isinstance(name, str):
        return False
    try:
        target = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(target).parameters
    except (ImportError, ValueError, TypeError):
        return False
    return name in parameters and parameters[name].kind.name in (
        "POSITIONAL_OR_KEYWORD",
        "KEYWORD_ONLY",
    )


def _converted(old: Any, value: Any, text: str, path: list[str | int]) -> Any:
    """``value`` in the type that the key has now."""
    if value is None or old is None or _join(path).endswith("_target_"):
        return value
    if isinstance(value, str) and "${" in value:
        return value
    if isinstance(old, str):
        if isinstance(value, dict | list):
            raise _wrong_type(path, str, text)
        # A number is a fair name for a folder; quotes are YAML's, not part of the string.
        return value if isinstance(value, str) else text
    for kind in (bool, int, float, list, dict):
        if not matches_type(old, kind):
            continue
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)  # 1e5
        if not matches_type(value, kind):
            raise _wrong_type(path, kind, text)
        if kind is list:
            _check_elements(old, value, path)
        return value
    return value


def _check_elements(old: ListConfig, value: list[Any], path: list[str | int]) -> None:
    kinds = [k for k in (bool, int, float, str) if old and all(matches_type(v, k) for v in old)]
    if kinds:
        kind = float if kinds[0] is int else kinds[0]
        for element in value:
            if not matches_type(element, kind):
                raise InputError(
                    f"{_join(path)} must be a list of which each element is {TYPE_NAMES[kind]}, "
                    f"but {element!r} is none."
                )


def _wrong_type(path: list[str | int], kind: type, text: str) -> InputError:
    return InputError(f"{_join(path)} must be {TYPE_NAMES[kind]}, not '{text}'.")


def _unknown(cfg: DictConfig, path: list[str | int]) -> InputError:
    key = _join(path)
    known = list(dict.fromkeys(all_keys(cfg)))
    last = str(path[-1])
    same_name = [k for k in known if k.split(".")[-1] == last]
    # Of keys with the same last part, the nearest; or else the nearest of all.
    close = difflib.get_close_matches(key, same_name, n=1, cutoff=0)
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else "."
    return InputError(f"There is no key '{key}' in the configuration{hint}")


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, with the unset arguments of the classes it calls."""
    if isinstance(node, ListConfig):
        names: list[Any] = list(range(len(node)))
    else:
        names = list(node.keys())
    for name in names:
        key = f"{prefix}[{name}]" if isinstance(node, ListConfig) else f"{prefix}.{name}"
        yield key.lstrip(".")
        linked = OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name)
        child = None if linked else node[name]
        if isinstance(child, DictConfig | ListConfig):
            yield from all_keys(child, key)


def _join(path: list[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
