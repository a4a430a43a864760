r"""The grammar of ``key=value`` overrides: the part of Hydra's that has to do with values.

A key is dotted; list elements are ``a.0.b`` or ``a[0].b``; a leading ``+`` or ``++`` is ignored. A
value is a quoted string, ``[...]``, ``{key: value, ...}``, ``null``, ``true``, ``false``, a number,
an interpolation ``${...}``, or else a string as it stands, in which ``\`` before one of
``\ ( ) [ ] { } : = ,`` or a blank takes its special meaning away.
Source: Hydra's documentation, "Basic Override syntax".
"""

import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

_KEY = re.compile(r"[A-Za-z_$][\w$/-]*(?:\.[\w$/-]+|\[-?\d+\])*")
_DIGITS = r"\d+(?:_\d+)*"
_INT = re.compile(r"[+-]?(?:0|[1-9]\d*(?:_\d+)*)")
_FLOAT = re.compile(
    rf"[+-]?(?:(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:e[+-]?{_DIGITS})?"
    rf"|{_DIGITS}e[+-]?{_DIGITS}|inf|nan)",
    re.IGNORECASE,
)
_WORDS = {"true": True, "false": False, "null": None}
_ESCAPABLE = "\\()[]{}:=, \t"


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` and read the value.

    Raises:
        ValueError: it does not follow the grammar; the message says where.
    """
    key, equals, value = text.partition("=")
    if key.startswith("~"):
        raise ValueError(f"override {text!r} asks to delete a key, which is not possible")
    key = key.removeprefix("+").removeprefix("+")
    if not equals:
        raise ValueError(f"override {text!r} is not of the form key=value")
    if not _KEY.fullmatch(key):
        raise ValueError(f"override {text!r} has {key!r} in the place of a dotted key")
    try:
        return key, _ValueReader(value).read()
    except ValueError as error:
        raise ValueError(f"override {text!r} cannot be read: {error}") from error


def update(cfg: DictConfig | ListConfig, key: str, value: Any) -> None:
    """Set a key in a configuration; mappings are merged, keys on the way are created.

    Raises:
        KeyError: a part of the key is a value already and has no keys.
    """
    dotted = re.sub(r"\[(-?\d+)\]", r".\1", key)
    parts = dotted.split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count])
        found = OmegaConf.select(cfg, prefix, default=None)
        if found is None:
            break
        if not OmegaConf.is_config(found):
            kind = type(found).__name__
            raise KeyError(f"cannot set {key}: {prefix} holds a value ({kind}), not keys")
    OmegaConf.update(cfg, dotted, value, merge=True)


class _ValueReader:
    """A recursive descent over the text of one value."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Any:
        if not self._text.strip():
            return ""
        value = self._value(stops="")
        self._skip_blanks()
        if self._at < len(self._text):
            raise ValueError(
                f"unexpected {self._text[self._at]!r} at column {self._at + 1} of the value; "
                "quote strings with special characters"
            )
        return value

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_blanks(self) -> None:
        while self._peek() and self._peek() in " \t":
            self._at += 1

    def _value(self, stops: str) -> Any:
        """One value; an unquoted one ends at a character of ``stops``."""
        self._skip_blanks()
        start = self._peek()
        if start == "[":
            return self._list()
        if start == "{":
            return self._dict()
        if start and start in "'\"":
            return self._quoted()
        return self._unquoted(stops)

    def _list(self) -> list[Any]:
        items: list[Any] = []
        self._items("]", lambda: items.append(self._value(",]")))
        return items

    def _dict(self) -> dict[Any, Any]:
        items: dict[Any, Any] = {}

        def item() -> None:
            key = self._value(":,}")
            self._skip_blanks()
            self._expect(":")
            if isinstance(key, list | dict):
                raise ValueError(f"{key!r} cannot be a key")
            items[key] = self._value(",}")

        self._items("}", item)
        return items

    def _items(self, end: str, read_item: Any) -> None:
        self._at += 1  # the opening bracket
        self._skip_blanks()
        if self._peek() == end:
            self._at += 1
            return
        while True:
            read_item()
            self._skip_blanks()
            if self._peek() == end:
                self._at += 1
                return
            self._expect(",", f"',' or {end!r}")

    def _expect(self, character: str, wanted: str | None = None) -> None:
        if self._peek() != character:
            found = repr(self._peek()) if self._peek() else "its end"
            raise ValueError(
                f"expected {wanted or repr(character)} at column {self._at + 1} of the value, "
                f"found {found}"
            )
        self._at += 1

    def _quoted(self) -> str:
        quote = self._peek()
        found = re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL).match(
            self._text, self._at
        )
        if found is None:
            raise ValueError(f"the quote {quote} at column {self._at + 1} is not closed")
        self._at = found.end()
        # Backslashes mean something only before a quote and at the end, where two stand for one.
        return re.sub(rf"(\\+)({quote}|\Z)", lambda m: "\\" * (len(m[1]) // 2) + m[2], found[1])

    def _unquoted(self, stops: str) -> Any:
        characters: list[str] = []
        literal = False  # an escaped character makes it a string for good
        while (character := self._peek()) and character not in stops:
            if character == "\\" and self._text[self._at + 1 : self._at + 2] in _ESCAPABLE:
                characters.append(self._text[self._at + 1])
                self._at += 2
                literal = True
            elif self._text.startswith("${", self._at):
                characters.append(self._interpolation())
            elif character in ",()[]{}'\"":
                raise ValueError(
                    f"unexpected {character!r} at column {self._at + 1} of the value; quote "
                    "strings with special characters"
                )
            else:
                characters.append(character)
                self._at += 1
        text = "".join(characters).strip(" \t")
        if not text:
            raise ValueError(f"a value is missing at column {self._at + 1}")
        return text if literal else _scalar(text)

    def _interpolation(self) -> str:
        """The text from ``${`` to the matching ``}``; OmegaConf reads what is inside."""
        start, depth = self._at, 0
        while True:
            if not self._peek():
                raise ValueError(f"the interpolation at column {start + 1} is not closed")
            depth += (self._peek() == "{") - (self._peek() == "}")
            self._at += 1
            if depth == 0 and self._text[self._at - 1] == "}":
                return self._text[start : self._at]


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
