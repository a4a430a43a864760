"""A configuration as text that reads like Python."""

import json
from collections.abc import Mapping
from typing import Any

from detectron2.utils.registry import _convert_target_to_string

_LINE_LENGTH = 88
_INDENT = "    "


def to_code(config: Any, prefix: str) -> str:
    """One assignment for each value and each described call.

    Args:
        config: plain containers.
        prefix: what the names begin with, ``"cfg."`` for example.
    """
    lines: list[str] = []
    _assignments(config, prefix.rstrip("."), lines)
    return "".join(line + "\n" for line in lines)


def _assignments(value: Any, name: str, lines: list[str]) -> None:
    if isinstance(value, Mapping) and value and "_target_" not in value:
        for key in sorted(value, key=str):
            _assignments(value[key], _member(name, key), lines)
    else:
        lines.append(_layout(_pieces(value), f"{name} = ", indent=""))


def _member(name: str, key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{name}.{key}" if name else key
    return f"{name}[{_atom(key)}]"


# A value is either its text, or an opening, (label, value) items, and a closing.
_Pieces = str | tuple[str, list[tuple[str, Any]], str]


def _pieces(value: Any) -> _Pieces:
    if isinstance(value, Mapping):
        keys = sorted(value, key=str)
        if "_target_" not in value:
            return "{", [(f"{_atom(key)}: ", _pieces(value[key])) for key in keys], "}"
        target = value["_target_"]
        called = target if isinstance(target, str) else _flat(_pieces(target))
        keys.remove("_target_")
        return f"{called}(", [(f"{key}=", _pieces(value[key])) for key in keys], ")"
    if isinstance(value, list):
        return "[", [("", _pieces(item)) for item in value], "]"
    return _atom(value)


def _atom(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if callable(value) and hasattr(value, "__qualname__"):
        return _convert_target_to_string(value)
    return repr(value)


def _flat(pieces: _Pieces) -> str:
    if isinstance(pieces, str):
        return pieces
    opening, items, closing = pieces
    return opening + ", ".join(label + _flat(item) for label, item in items) + closing


def _layout(pieces: _Pieces, label: str, indent: str, end: str = "") -> str:
    """On one line if it fits, else one item per line with a trailing comma, as black does it."""
    line = indent + label + _flat(pieces) + end
    if isinstance(pieces, str) or len(line) <= _LINE_LENGTH or not pieces[1]:
        return line
    opening, items, closing = pieces
    inner = [_layout(item, key, indent + _INDENT, end=",") for key, item in items]
    return "\n".join([indent + label + opening, *inner, indent + closing + end])
