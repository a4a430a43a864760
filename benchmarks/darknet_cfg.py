"""Darknet's cfg files for other data: classes, input size, anchors, as one edits them by hand."""

import re
from collections.abc import Sequence
from pathlib import Path

Level = Sequence[Sequence[float]]


def adapt_cfg(
    source: Path,
    target: Path,
    *,
    num_classes: int,
    size: tuple[int, int],
    levels: Sequence[Level],
) -> None:
    """Write ``source`` with another number of classes, input size and anchors.

    Args:
        source: a cfg file with ``[yolo]`` sections.
        target: where the edited one goes.
        num_classes: C.
        size: height and width of the input.
        levels: (width, height) in pixels of the anchors of each ``[yolo]``, in the file's order.
    """
    sections = re.split(r"(?m)^(?=\[)", source.read_text())
    heads = [i for i, text in enumerate(sections) if text.startswith("[yolo]")]
    if len(heads) != len(levels):
        raise ValueError(f"{source} has {len(heads)} [yolo] sections, not {len(levels)}")
    net = next(i for i, text in enumerate(sections) if text.startswith("[net]"))
    sections[net] = _set(_set(sections[net], "height", size[0]), "width", size[1])
    # Masks number the anchors of all levels, which darknet lists from small to large.
    anchors = sorted((anchor for level in levels for anchor in level), key=lambda a: a[0] * a[1])
    flat = ", ".join(f"{value:g}" for anchor in anchors for value in anchor)
    for head, level in zip(heads, levels, strict=True):
        mask = ",".join(str(anchors.index(anchor)) for anchor in level)
        values: dict[str, object] = {
            "anchors": flat,
            "mask": mask,
            "num": len(anchors),
            "classes": num_classes,
        }
        for key, value in values.items():
            sections[head] = _set(sections[head], key, value)
        before = max(i for i in range(head) if sections[i].startswith("[convolutional]"))
        sections[before] = _set(sections[before], "filters", len(level) * (5 + num_classes))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(sections))


def _set(section: str, key: str, value: object) -> str:
    return re.sub(rf"(?m)^{key}\s*=.*$", f"{key}={value}", section)
