"""JSON whose large arrays are handed over element by element instead of being built in memory.

A COCO json of 860 000 boxes is 0.1 to 0.45 GB of text, and several times that as Python objects.
"""

import json
import re
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any

__all__ = ["JSONDecodeError", "read_top_level"]

_decode = json.JSONDecoder().raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match


def read_top_level(text: str, arrays: dict[str, Callable[[Any], None]]) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        text: the document.
        arrays: key of the top-level object -> called with each element of the array there.

    Returns:
        the object, where each key of ``arrays`` that occurred holds its number of elements. A
        document that is not an object gives {}.

    Raises:
        JSONDecodeError: not JSON, or no array where one is expected.
    """
    result: dict[str, Any] = {}
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        _decode(text, at)
        return result
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        return result
    while True:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting property name in double quotes", text, at)
        key, at = _decode(text, at)
        at = _expect(text, at, ":")
        if key in arrays:
            result[key], at = _read_array(text, at, arrays[key])
        else:
            result[key], at = _decode(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] == "}":
            break
        at = _expect(text, at, ",")
    at = _after_space(text, at + 1)
    if at != len(text):
        raise JSONDecodeError("Extra data", text, at)
    return result


def _read_array(text: str, at: int, handle: Callable[[Any], None]) -> tuple[int, int]:
    """Hand over each element of the array at ``at``; its length and where it ends."""
    at = _expect(text, at, "[")
    if text[at : at + 1] == "]":
        return 0, at + 1
    count = 0
    while True:
        value, at = _decode(text, at)
        handle(value)
        count += 1
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            return count, at + 1
        at = _expect(text, at, ",")


def _expect(text: str, at: int, character: str) -> int:
    """The position of what follows ``character``, which must come next."""
    at = _after_space(text, at)
    if text[at : at + 1] != character:
        raise JSONDecodeError(f"Expecting {character!r}", text, at)
    return _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _skip_space(text, at)
    return match.end() if match else at
