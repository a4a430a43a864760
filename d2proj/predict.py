"""Detect objects in pictures and videos: ``python -m d2proj.predict``.

Writes the drawn pictures (and videos), and ``predictions.json``: COCO results entries
(``image_id``, ``category_id``, ``bbox`` as x, y, width, height, ``score``) with ``file_name``, and
``frame`` (from 0) for videos.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from omegaconf import DictConfig, ListConfig

from d2proj.engine import setup
from d2proj.engine.class_names import ClassNames, find_class_names
from d2proj.engine.config import build, load_config
from d2proj.engine.exits import run_and_exit
from d2proj.engine.logs import RunLog
from d2proj.errors import InputError
from d2proj.evaluation.drawing import draw_boxes, enlarge
from d2proj.evaluation.media import Source, VideoSink, find_sources, read_picture, video_frames
from d2proj.evaluation.predictor import Predictor

logger = logging.getLogger("d2proj.predict")
_THRESHOLD_KEYS = ("score_thresh", "test_score_thresh", "score_threshold")


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of ``python -m d2proj.predict``."""
    parser = argparse.ArgumentParser(
        prog="python -m d2proj.predict",
        description="Detect objects in pictures and videos, draw them, write predictions.json.",
        epilog="A LazyConfig file is Python and runs as you: use only files that you would run.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help=".py or config.yaml")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--output", default="output/predictions", metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace predictions in DIR")
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "inputs", nargs="+", metavar="IMAGE|FOLDER|VIDEO|key=value", help="what to look at"
    )
    return parser


@dataclass
class _Job:
    """One call of the command."""

    predictor: Predictor
    classes: ClassNames
    output: Path
    threshold: float
    entries: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    def detect(self, image: np.ndarray, image_id: int, named: dict[str, Any]) -> Instances:
        """Detect in one picture (BGR), and note the boxes under ``named`` (``file_name``, ...)."""
        start = time.perf_counter()
        found = self.predictor(image)
        self.seconds += time.perf_counter() - start
        self.images += 1
        found = found[found.scores >= self.threshold]
        for box, score, index in zip(
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            strict=True,
        ):
            x0, y0, x1, y1 = box
            entry = {
                "image_id": image_id,
                "category_id": self.classes.ids[index],
                "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 6),
                "category": self.classes.names[index],
            }
            self.entries.append(entry | named)
        return found

    def draw(self, image: np.ndarray, found: Instances, factor: int = 1) -> np.ndarray:
        """Draw detections on ``image``, which is ``factor`` times the size that they are for."""
        classes = found.pred_classes.tolist()
        scores = found.scores.tolist()
        labels = [f"{self.classes.names[c]} {s:.0%}" for c, s in zip(classes, scores, strict=True)]
        return draw_boxes(image, found.pred_boxes.tensor.numpy() * factor, classes, labels)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = argument_parser().parse_intermixed_args(argv)
    run_and_exit(lambda: predict(args))


def predict(args: argparse.Namespace) -> None:
    """Do what the arguments ask for.

    Raises:
        InputError: something given cannot be used; nothing is written then, except that an
            unreadable picture is found when its turn comes (``data.on_bad_image=skip`` goes on).
    """
    paths = [text for text in args.inputs if "=" not in text or Path(text).exists()]
    cfg = load_config(args.config_file, [text for text in args.inputs if text not in paths])
    if not 0 <= args.score_threshold <= 1:
        raise InputError(f"--score-threshold must be in 0..1, not {args.score_threshold:g}.")
    output = Path(args.output)
    sources = find_sources(paths, output)
    if (output / "predictions.json").exists() and not args.overwrite:
        raise InputError(
            f"{output} holds predictions already: replace them with --overwrite or choose another "
            "--output."
        )
    log = RunLog()
    try:
        _run(cfg, args, sources, output)
    finally:
        log.close()


def _run(cfg: DictConfig, args: argparse.Namespace, sources: list[Source], output: Path) -> None:
    device = setup.resolve_device(args.device)
    classes = find_class_names(cfg, args.weights)
    _lower_thresholds(cfg.model, args.score_threshold)
    model = setup.build_model(cfg, device, seed=0)
    setup.initialize_weights(model, args.weights, strict_classes=True)
    predictor = Predictor(
        model,
        build(cfg, "data.val_augmentations"),
        image_format=cfg.data.image_format,
        fuse=cfg.eval.fuse,
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror}.") from error
    job = _Job(predictor, classes, output, args.score_threshold)
    next_id = 1
    for source in sources:
        try:
            frames = _video if source.is_video else _picture
            next_id = frames(job, source, next_id)
        except InputError as error:
            if cfg.data.on_bad_image == "raise":
                raise
            logger.warning(f"skipped: {error}")
    temporary = output / "predictions.json.tmp"
    temporary.write_text(json.dumps(job.entries, indent=1) + "\n", encoding="utf-8")
    temporary.replace(output / "predictions.json")
    speed = job.images / job.seconds if job.seconds else 0.0
    logger.info(
        f"{len(job.entries)} boxes in {job.images} pictures ({speed:.1f} images/s) on "
        f"{torch.device(device)}: {output / 'predictions.json'}, pictures beside it"
    )


def _picture(job: _Job, source: Source, next_id: int) -> int:
    image = read_picture(source.path)
    # COCO's habit: pictures are called by their number.
    image_id = int(source.path.stem) if source.numbered else next_id
    found = job.detect(image, image_id, {"file_name": str(source.path)})
    canvas, factor = enlarge(image)
    file = job.output / source.output_name
    if not cv2.imwrite(str(file), job.draw(canvas, found, factor)):
        raise InputError(f"The picture {file} could not be written.")
    return next_id + 1


def _video(job: _Job, source: Source, next_id: int) -> int:
    sink: VideoSink | None = None
    frames: Iterator[tuple[np.ndarray, float]] = video_frames(source.path)
    try:
        for number, (frame, rate) in enumerate(frames):
            named = {"file_name": str(source.path), "frame": number}
            found = job.detect(frame, next_id + number, named)
            sink = sink or VideoSink(job.output / source.output_name, frame.shape[:2], rate)
            sink.write(job.draw(frame.copy(), found))
    finally:
        if sink is not None:
            sink.close()
    return next_id + number + 1


def _lower_thresholds(node: Any, threshold: float) -> None:
    """Let the model give all boxes above the threshold, also where its own is higher."""
    if isinstance(node, ListConfig):
        names: list[Any] = list(range(len(node)))
    else:
        names = list(node)
    for name in names:
        value = node[name]
        if isinstance(value, DictConfig | ListConfig):
            _lower_thresholds(value, threshold)
        elif name in _THRESHOLD_KEYS and isinstance(value, int | float):
            node[name] = min(float(value), threshold)


if __name__ == "__main__":
    main()
