"""Darknet's ``.names`` files: a class name on each line."""

from pathlib import Path

from d2proj.errors import InputError

_MOST_BYTES = 4 << 20
_LONGEST = 200


def read_names(path: str | Path) -> list[str]:
    """The names of a file, in its order; blank lines at its end do not count.

    Raises:
        InputError: it cannot be read or is no list of names; the line is named.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no file of class names: it is not text") from None
    except OSError as error:
        raise InputError(f"cannot read the class names {path}: {error.strerror or error}") from None
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path} is no file of class names: it has more than {_MOST_BYTES} bytes")
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line or len(line) > _LONGEST or not line.isprintable():
            raise InputError(f"{path}, line {number}: expected a class name, got {line[:40]!r}")
    if not lines:
        raise InputError(f"{path} is no file of class names: it is empty")
    return lines
