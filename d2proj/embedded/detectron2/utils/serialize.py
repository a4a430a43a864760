"""Pickling of what pickle cannot."""

from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """An object, such as a closure, that is pickled by value; unpickling gives the object itself.

    Calls and attributes go to the wrapped object.
    """

    def __init__(self, obj: Any) -> None:
        # Wrapping twice would pickle the inner wrapper by reference to this module for nothing.
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, attr: str) -> Any:
        if attr == "_obj":  # not set yet while copy or pickle builds an empty instance
            raise AttributeError(attr)
        return getattr(self._obj, attr)
