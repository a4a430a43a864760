"""What is measured of each op: one module per op, found by its name.

A module may have

    cpu_cases(quick: bool) -> Iterator[Case]     rows of benchmarks/ops.py
    memory_cases() -> Iterator[MemoryCase]       peak extra memory (benchmarks/ops.py, tests/ops)
    gpu_checks() -> Iterator[Check]              CUDA against CPU, by benchmarks/gpu_check.py
    gpu_times() -> Iterator[Timing]              rows of benchmarks/gpu_check.py
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def find(function: str) -> dict[str, Callable[..., Any]]:
    """Op -> its function of that name, for the ops that have one, by alphabet."""
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "common")
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in modules}
    return {name: getattr(m, function) for name, m in found.items() if hasattr(m, function)}
