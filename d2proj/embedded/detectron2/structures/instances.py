"""The instances found or labelled in one image."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch


class Instances:
    """Fields (boxes, classes, scores, ...) of the N instances in an image.

    A field is set and read as an attribute; all fields have the same length. Attributes that
    begin with ``_`` are no fields. Indexing with an int, a slice, a mask or indices selects
    instances in all fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Make instances of an image.

        Args:
            image_size: (height, width) of the image that the fields refer to.
            **kwargs: fields.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # "_fields" itself is missing while copy or pickle builds an empty object.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"the Instances have no field {name!r}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field.

        Raises:
            AssertionError: its length differs from the other fields'.
        """
        length = len(value)
        assert not self._fields or length == len(self), (
            f"field {name!r} has length {length}, the Instances have length {len(self)}"
        )
        self._fields[name] = value

    def get(self, name: str) -> Any:
        """The field ``name``; KeyError if there is none."""
        return self._fields[name]

    def has(self, name: str) -> bool:
        """Whether there is a field ``name``."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop the field ``name``; KeyError if there is none."""
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields by name: the object's own dict, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """New Instances whose fields went through their ``to(...)``, where they have one."""
        return self._map(lambda v: v.to(*args, **kwargs) if hasattr(v, "to") else v)

    def _map(self, function: Any) -> "Instances":
        moved = {name: function(value) for name, value in self._fields.items()}
        return Instances(self._image_size, **moved)

    def __getitem__(self, item: Any) -> Any:
        """Select instances, or, with a string, the field of that name."""
        if isinstance(item, str):
            return self.get(item)
        if isinstance(item, int) and not isinstance(item, bool):
            # A slice keeps the dimension in every kind of field.
            count = len(self)
            if not -count <= item < count:
                raise IndexError(f"instance {item} is out of range: there are {count}")
            item = slice(item % count, item % count + 1)
        return self._map(lambda value: value[item])

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances cannot be iterated; index them, or use their fields")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """All instances of a list, in order; of a single one, itself.

        Args:
            instance_lists: at least one, of one image size and with the fields of the first.
                Tensors and lists are concatenated, other fields by their class's ``cat``.

        Raises:
            AssertionError: an empty list, something else in it, or different image sizes.
            ValueError: a field of a type that cannot be concatenated.
        """
        assert len(instance_lists) > 0, "there are no Instances to concatenate"
        assert all(isinstance(one, Instances) for one in instance_lists), "expected Instances only"
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = [one.image_size for one in instance_lists]
        assert all(size == sizes[0] for size in sizes), f"image sizes differ: {sizes}"
        result = Instances(first.image_size)
        for name in first.get_fields():
            result.set(name, _cat_values([one.get(name) for one in instance_lists]))
        return result

    def __repr__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={len(self) if self._fields else 0}, "
            f"image_height={height}, image_width={width}, fields=[{fields}])"
        )


def _cat_values(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"fields of type {type(first)} cannot be concatenated")
