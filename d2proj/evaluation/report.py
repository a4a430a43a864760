"""Results for people: tables of COCO metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

_COLUMNS = 3  # classes side by side


def results_table(results: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The twelve-number habit in one row, then the AP of each class.

    Args:
        results: Detectron2's nested dict; None for what does not exist.
        class_names: in the order to show.
    """
    tables = []
    for task, metrics in results.items():
        overall = {name: value for name, value in metrics.items() if "-" not in name}
        row = [task, *(_percent(value) for value in overall.values())]
        tables.append(_table([row], ["", *overall]))
        per_class = [
            (name, _percent(metrics.get(f"AP-{name}")))
            for name in class_names
            if f"AP-{name}" in metrics
        ]
        if per_class:
            tables.append(_columns(per_class))
    return "\n\n".join(tables)


def _columns(cells: Sequence[tuple[str, str]]) -> str:
    columns = min(_COLUMNS, len(cells))
    rows = [
        [part for cell in cells[start : start + columns] for part in cell]
        for start in range(0, len(cells), columns)
    ]
    return _table(rows, ["class", "AP"] * columns)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Names to the left, numbers (and dashes) to the right."""
    names = ("", "class")
    align = ["left" if header in names else "right" for header in headers]
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
