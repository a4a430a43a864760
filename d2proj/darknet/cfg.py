"""Reads darknet's ``.cfg`` files: sections of ``key=value`` lines, in order.

A line's blanks are ignored; lines that begin with ``#`` or ``;`` are comments; of a key that a
section has twice the first counts, as in darknet.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from d2proj.errors import InputError

T = TypeVar("T")

# What a file may be: far above any that was published, far below what would fill a memory.
_MOST_BYTES = 4 << 20
_MOST_SECTIONS = 4096
# A value from the file in an error may be as long as the file.
_LONGEST_MESSAGE = 400
_NUMBER = re.compile(r"\s*([-+]?\d+)")
_FLOAT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


@dataclasses.dataclass(frozen=True)
class Section:
    """One ``[name]`` and the options under it.

    Attributes:
        file: what errors call the file.
        name: without brackets.
        line: where it begins, from 1.
        index: number of the layer, from 0; -1 for the first section, ``[net]``.
        options: key to value and line.
    """

    file: str
    name: str
    line: int
    index: int
    options: dict[str, tuple[str, int]]

    def fail(self, message: str, key: str | None = None) -> NoReturn:
        """Raise InputError with the file, the line (of a key, if it is given) and the section."""
        line = self.options[key][1] if key in self.options else self.line
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "..."
        where = f"[{self.name[:40]}]" + (f" (layer {self.index})" if self.index >= 0 else "")
        raise InputError(f"{self.file}, line {line}, {where}: {message}")

    def text(self, key: str, default: str) -> str:
        """An option as it is written."""
        return self.options[key][0] if key in self.options else default

    def integer(self, key: str, default: int, *, low: int, high: int) -> int:
        """A whole number; darknet ignores what follows it."""
        if key not in self.options:
            return default
        match = _NUMBER.match(self.options[key][0])
        value = int(match.group(1)) if match and len(match.group(1)) < 19 else None
        if value is None or not low <= value <= high:
            self.fail(
                f"{key} must be a whole number from {low} to {high}, got {self.text(key, '')!r}",
                key,
            )
        return value

    def flag(self, key: str) -> bool:
        """Whether a 0/1 option is set."""
        return self.integer(key, 0, low=-(1 << 31), high=1 << 31) != 0

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        if key not in self.options:
            return default
        return self._numbers(key, _FLOAT, float)[0]

    def integers(self, key: str) -> list[int]:
        """Whole numbers with commas between; empty without the key."""
        return self._numbers(key, _NUMBER, int) if key in self.options else []

    def numbers(self, key: str) -> list[float]:
        """Finite numbers with commas between; empty without the key."""
        return self._numbers(key, _FLOAT, float) if key in self.options else []

    def _numbers(self, key: str, pattern: re.Pattern[str], kind: Callable[[str], T]) -> list[T]:
        found = []
        for part in self.options[key][0].rstrip(",").split(","):
            match = pattern.match(part)
            if match is None or len(match.group(1)) > 30 or not math.isfinite(float(match[1])):
                self.fail(f"{key} must be numbers with commas between, got {part!r}", key)
            found.append(kind(match.group(1)))
        return found


def read_cfg(path: str | Path) -> list[Section]:
    """Read a file.

    Returns:
        Its sections; the first is ``[net]`` (or ``[network]``), each other one is a layer.

    Raises:
        InputError: it cannot be read or is no cfg file; the line is named.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path} is no darknet cfg file: it has {size} bytes")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no darknet cfg file: it is not text") from None
    except OSError as error:
        raise InputError(f"cannot read the cfg file {path}: {error.strerror or error}") from None
    return parse_cfg(text, str(path))


def parse_cfg(text: str, file: str = "cfg") -> list[Section]:
    """Parse a file's text; ``file`` is what errors call it. See :func:`read_cfg`."""
    sections: list[Section] = []
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = re.sub(r"[ \t\0]", "", raw)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if not line.endswith("]") or len(line) < 3:
                raise InputError(f"{file}, line {number}: expected [section], got {raw.strip()!r}")
            if len(sections) > _MOST_SECTIONS:
                raise InputError(f"{file} has more than {_MOST_SECTIONS} sections")
            sections.append(Section(file, line[1:-1], number, len(sections) - 1, {}))
            continue
        key, equals, value = line.partition("=")
        if not equals or not key:
            shown = raw.strip()[:60]
            raise InputError(f"{file}, line {number}: expected key=value, got {shown!r}")
        if not sections:
            raise InputError(f"{file}, line {number}: {key} stands before the first [section]")
        sections[-1].options.setdefault(key, (value, number))
    if not sections:
        raise InputError(f"{file} is no darknet cfg file: it has no [section]")
    if sections[0].name not in ("net", "network"):
        sections[0].fail("the first section must be [net]")
    if len(sections) == 1:
        sections[0].fail("there are no layers after [net]")
    return sections
