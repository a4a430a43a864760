"""What came of loading a weight file into a model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """The outcome of :func:`d2proj.checkpoint.load_weights`, by the model's own names.

    Attributes:
        file: path of the weight file.
        kind: how it is stored: ``"torch"``, ``"torch-legacy"``, ``"safetensors"``,
            ``"pickle"`` or ``"darknet"``.
        flavour: whose names it uses, in words ("torchvision RetinaNet", "Detectron2 ...").
        matched: names of the model's tensors that the file filled.
        missing: names of the model's tensors that the file does not have.
        unexpected: the file's names that the model has no place for.
        mismatched: names in both whose shapes differ for a reason other than the number of
            classes, with (file's shape, model's shape). They keep the model's initial values.
        reinitialised: the same for tensors that depend on the number of classes.
        ignored: the file's names that are known to be of no use here (classifier of a backbone,
            counters of batch normalisation, constants that the model computes itself).
        filled: fraction of the model's parameters and statistics (by number of values) that the
            file filled, 0..1.
        notes: what was converted on the way, and what else the reader should know.
    """

    file: str
    kind: str
    flavour: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    reinitialised: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict
    )
    ignored: tuple[str, ...] = ()
    filled: float = 0.0
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """A short table, one row for each part of the model, for the log and the terminal."""
        columns = {
            "loaded": _per_module(self.matched),
            "missing": _per_module(self.missing),
            "re-initialised": _per_module(self.reinitialised),
            "other shape": _per_module(self.mismatched),
            "not used": _per_module(self.unexpected),
        }
        shown = ["loaded", *(name for name in list(columns)[1:] if columns[name])]
        modules = list(dict.fromkeys(m for name in shown for m in columns[name]))
        width = max((len(m) for m in modules), default=6)
        lines = [
            f"{self.file}: {self.flavour} ({self.kind} file), "
            f"{self.filled:.1%} of the model filled from it",
            "  ".join(["module".ljust(width), *shown]),
        ]
        for module in modules:
            cells = [str(columns[name][module] or "-").rjust(len(name)) for name in shown]
            lines.append("  ".join([module.ljust(width), *cells]))
        if self.ignored:
            lines.append(f"ignored: {len(self.ignored)} tensors that no detector needs")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)


def _per_module(names: Iterable[str]) -> Counter[str]:
    """Count names by the first two parts, digits as ``*``: backbone.fpn_lateral2 and 3 are one."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1] or [name]
        counts[re.sub(r"\d+", "*", ".".join(parts[:2]))] += 1
    return counts
