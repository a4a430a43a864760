"""Global tables: data set name → loading function, and data set name → what is known about it."""

import logging
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

# Old attribute names, which are still answered under their present name.
_RENAMED = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


class _DatasetCatalog(UserDict):
    """Names of data sets and the functions that produce their dataset dicts."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Tie ``name`` to ``func``, which must return the same dicts whenever it is called."""
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> list[dict]:  # type: ignore[override]  # Detectron2's signature
        """Load the data set ``name`` by calling its registered function.

        Raises:
            KeyError: the name is unknown; the message lists those that are known.
        """
        if name not in self:
            known = ", ".join(self)
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {known}")
        return self[name]()

    def list(self) -> list[str]:
        """Return the names of all registered data sets."""
        return list(self)

    def remove(self, name: str) -> None:
        """Forget the data set ``name``."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata:
    """Facts about one data set, held as attributes that can be set once.

    Reading an attribute that was never set raises ``AttributeError``; giving a set one another
    value is an assertion error, since other code has relied on the first.
    """

    name: str = "N/A"

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def __getattr__(self, key: str) -> Any:
        # Reached only when the attribute is not there.
        if key in _RENAMED:
            logging.getLogger(__name__).warning(
                f"Metadata '{key}' was renamed to '{_RENAMED[key]}'!"
            )
            return getattr(self, _RENAMED[key])
        prefix = f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'"
        if len(self.__dict__) > 1:  # the name itself is always there
            raise AttributeError(f"{prefix}. Available keys are {self.__dict__.keys()}.")
        raise AttributeError(f"{prefix}: metadata is empty.")

    def __setattr__(self, key: str, val: Any) -> None:
        if key in _RENAMED:
            logging.getLogger(__name__).warning(
                f"Metadata '{key}' was renamed to '{_RENAMED[key]}'!"
            )
            key = _RENAMED[key]
        if key in self.__dict__:
            held = self.__dict__[key]
            assert held == val, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different "
                f"value!\n{held} != {val}"
            )
            return
        super().__setattr__(key, val)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of all that is known, by name."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns the object itself."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where it was never set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """One :class:`Metadata` per data set name, alive for the whole program."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]  # Detectron2's signature
        """Return the metadata of ``name``, made empty on the first call."""
        assert len(name), "a data set name must not be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Return the names that have metadata."""
        return list(self)

    def remove(self, name: str) -> None:
        """Forget the metadata of ``name``."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
