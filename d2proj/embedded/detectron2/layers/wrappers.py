"""Tensor functions with a small twist."""

from collections.abc import Sequence

import torch

__all__ = ["cat", "nonzero_tuple"]


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """``torch.cat`` that returns a single tensor itself instead of a copy."""
    assert isinstance(tensors, list | tuple), f"expected a list, got {type(tensors)}"
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Indices of the elements that are not zero, one tensor per dimension; a scalar has one."""
    return torch.atleast_1d(x).nonzero(as_tuple=True)
