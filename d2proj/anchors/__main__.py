"""Anchors for a data set: ``python -m d2proj.anchors``."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from d2proj.anchors.kmeans import AnchorFit, best_iou, fit_anchors
from d2proj.data import load_dataset
from d2proj.data.records import DetectionRecords
from d2proj.engine.config import build, load_config
from d2proj.engine.exits import run_and_exit
from d2proj.errors import InputError
from d2proj.modeling.dense_heads.yolo import RegionDecoder

_THRESHOLDS = (0.25, 0.5, 0.6, 0.7, 0.8)


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of ``python -m d2proj.anchors``."""
    parser = argparse.ArgumentParser(
        prog="python -m d2proj.anchors",
        description="Cluster the box shapes of a training set into anchors (k-means, 1 - IoU).",
        epilog="The data set is named as for train_net.py: dataset.format=... and its paths.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help=".py or config.yaml")
    parser.add_argument("--num", type=int, metavar="K", help="how many (default: the config's)")
    parser.add_argument(
        "--size",
        metavar="W[xH]",
        help="of the network's input, to which images are stretched (default: as "
        "data.val_augmentations resize each)",
    )
    parser.add_argument("--stride", type=int, default=32, metavar="S", help="pixels a cell (32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=10, metavar="N")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = argument_parser().parse_intermixed_args(argv)
    run_and_exit(lambda: find(args))


def find(args: argparse.Namespace) -> None:
    """Print anchors.

    Raises:
        InputError: an argument, the config or the data set is no good.
    """
    cfg = load_config(args.config_file, args.overrides)
    present = cfg.model.get("anchors")
    k = args.num if args.num is not None else len(present or ())
    if k < 1 or args.restarts < 1 or args.stride < 1:
        raise InputError(
            "--num, --restarts and --stride must be at least 1"
            + ("" if args.num is not None else f" ({args.config_file} has no model.anchors)")
        )
    data = load_dataset(cfg.dataset, "train", on_bad_image=cfg.data.on_bad_image)
    resize = _Stretch(args.size) if args.size else _Augmented(cfg)
    shapes = box_shapes(data.dicts, resize)
    try:
        fit = fit_anchors(shapes, k, seed=args.seed, restarts=args.restarts)
    except ValueError as error:
        raise InputError(f"{data.name}: {error}") from None
    images = f"{len(data)} images, {resize}"
    print(f"{len(shapes)} boxes of {images}; box sides in pixels of the network's input")
    in_cells = _uses_cells(cfg)
    if present:
        scale = args.stride if in_cells else 1
        own = np.array([list(anchor) for anchor in present], dtype=np.float64) * scale
        print(_quality(f"{len(own)} of the config", AnchorFit(own, *best_iou(shapes, own))))
    print(_quality(f"{k} found", fit))
    print(_table(fit, args.stride))
    pixels = [[round(side, 2) for side in anchor] for anchor in fit.anchors.tolist()]
    cells = [[round(side / args.stride, 4) for side in anchor] for anchor in fit.anchors.tolist()]
    chosen = cells if in_cells else pixels
    nested = ",".join(f"[{w:g},{h:g}]" for w, h in chosen)
    print(f"\ntrain_net.py: 'model.anchors=[{nested}]'")
    if present and len(present) != k:
        print(f"(the config has {len(present)}: its masks and num_anchors must be changed, too)")
    print(f"cfg, [yolo]: anchors = {_flat(pixels)}")
    print(f"cfg, [region]: anchors = {_flat(cells)}")


def box_shapes(records: DetectionRecords, resize: "_Stretch | _Augmented") -> npt.NDArray[Any]:
    """float64[M, 2], width and height of the boxes to train on, in pixels of the network's input.

    Raises:
        InputError: there are none.
    """
    sizes = np.stack([records.heights, records.widths], axis=1)
    different, kind = np.unique(sizes, axis=0, return_inverse=True)
    scales = np.array([resize.scale(int(h), int(w)) for h, w in different]).reshape(-1, 2)
    wanted = ~records.crowd
    boxes = records.boxes[wanted]
    scale = scales[kind.reshape(-1)[records.image_of_box()[wanted]]]
    shapes = (boxes[:, 2:] - boxes[:, :2]) * scale
    if not len(shapes):
        raise InputError("the training set has no boxes")
    return shapes


class _Stretch:
    """Every image to one size."""

    def __init__(self, size: str) -> None:
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
        self.width, self.height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if self.width < 1 or self.height < 1:
            raise InputError(f"--size must be W or WxH, such as 416 or 608x416, not {size!r}")

    def __str__(self) -> str:
        return f"stretched to {self.width} x {self.height}"

    def scale(self, height: int, width: int) -> tuple[float, float]:
        """Of x and y, for an image of this size."""
        return self.width / width, self.height / height


class _Augmented:
    """As the config resizes images for evaluation."""

    def __init__(self, cfg: DictConfig) -> None:
        self.augmentations: Sequence[Any] = build(cfg, "data.val_augmentations")

    def __str__(self) -> str:
        return "resized as data.val_augmentations do"

    def scale(self, height: int, width: int) -> tuple[float, float]:
        """Of x and y, for an image of this size."""
        corner, size = np.array([[float(width), float(height)]]), (height, width)
        for augmentation in self.augmentations:
            # Not an image, but nothing looks at more than its shape.
            blank = np.broadcast_to(np.zeros((), np.uint8), (*size, 3))
            fixed = isinstance(augmentation, T.Transform)
            transform = augmentation if fixed else augmentation.get_transform(blank)
            origin, corner = np.split(
                transform.apply_coords(np.concatenate([np.zeros((1, 2)), corner])), 2
            )
            corner = np.abs(corner - origin)
            size = (getattr(transform, "new_h", size[0]), getattr(transform, "new_w", size[1]))
        return float(corner[0, 0]) / width, float(corner[0, 1]) / height


def _uses_cells(cfg: DictConfig) -> bool:
    """Whether the config's decoders take anchors in cells (YOLOv2, YOLO9000)."""
    for decoder in cfg.model.get("decoders") or ():
        target = decoder.get("_target_")
        found = locate(target) if isinstance(target, str) else target
        if isinstance(found, type) and issubclass(found, RegionDecoder):
            return True
    return False


def _quality(what: str, fit: AnchorFit) -> str:
    recalls = "  ".join(f"{fit.recall(t):.4f} at {t}" for t in _THRESHOLDS)
    return f"{what:>16}: average IoU {fit.mean_iou:.4f}, best possible recall {recalls}"


def _table(fit: AnchorFit, stride: int) -> str:
    count = np.bincount(fit.nearest, minlength=len(fit.anchors))
    lines = [f"\n{'width':>8}{'height':>8}{'in cells of ' + str(stride):>20}{'boxes':>9}{'IoU':>8}"]
    for number, (w, h) in enumerate(fit.anchors):
        mean = fit.iou[fit.nearest == number].mean() if count[number] else 0.0
        cells = f"{w / stride:.3f} x {h / stride:.3f}"
        lines.append(f"{w:>8.1f}{h:>8.1f}{cells:>20}{count[number]:>9}{mean:>8.3f}")
    return "\n".join(lines)


def _flat(anchors: list[list[float]]) -> str:
    return ", ".join(f"{w:g},{h:g}" for w, h in anchors)


if __name__ == "__main__":
    main()
