"""From a configuration to the parts of a run."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from d2proj.checkpoint import load_weights
from d2proj.data import DetectionData, check_same_classes, has_split, load_dataset
from d2proj.engine.config import build, set_num_classes
from d2proj.engine.precision import Precision
from d2proj.engine.schedule import Schedule
from d2proj.errors import InputError
from d2proj.evaluation import CocoEvaluation
from d2proj.evaluation.coco import METRICS

logger = logging.getLogger(__name__)
_DEV_ITERS = 4
_DEV_IMAGES = 8


@dataclass(frozen=True)
class Lengths:
    """A run's lengths, in iterations. A period of 0 means: only at the end."""

    max_iter: int
    iters_per_epoch: float
    eval_period: int
    checkpoint_period: int


def resolve_device(name: str) -> torch.device:
    """``auto``: this process's GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"train.device must be auto, cpu, cuda or cuda:N, not {name!r}."
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"train.device must be auto, cpu, cuda or cuda:N, not {name!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"train.device={name} was asked for, but torch finds no GPU here.")
        if device.index is None:
            device = torch.device("cuda", comm.get_local_rank())
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"train.device={name} was asked for; there are {torch.cuda.device_count()} GPUs."
            )
        torch.cuda.set_device(device)
    return device


def prepare_torch(cfg: DictConfig) -> torch.device:
    """Choose the device, share the cores between processes, set determinism."""
    device = resolve_device(cfg.train.device)
    processes = comm.get_local_size()
    if device.type == "cpu" and processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    if cfg.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return device


def apply_fast_dev_run(cfg: DictConfig) -> None:
    """Shrink a run to a few iterations and images that pass through everything."""
    if not cfg.train.fast_dev_run:
        return
    cfg.train.max_iter = _DEV_ITERS
    cfg.train.log_period = 1
    cfg.train.checkpoint.period_iters = cfg.eval.period_iters = _DEV_ITERS // 2
    cfg.eval.max_images = min(cfg.eval.max_images or _DEV_IMAGES, _DEV_IMAGES)
    cfg.eval.visualize = max(cfg.eval.visualize, 2)


def load_data(cfg: DictConfig, *, train: bool) -> tuple[DetectionData | None, DetectionData | None]:
    """Read (train, val), and enter their classes in the configuration.

    Args:
        cfg: the configuration.
        train: for training both are read, validation only if the configuration names any data for
            it; otherwise validation alone, which then must be there.
    """
    found: dict[str, DetectionData] = {}
    # The generated data set is written by whoever comes first: let that be the main process.
    if not comm.is_main_process():
        comm.synchronize()
    for split in ("train", "val") if train else ("val",):
        if split == ("train" if train else "val") or has_split(cfg.dataset, split):
            data = load_dataset(cfg.dataset, split, on_bad_image=cfg.data.on_bad_image)
            logger.info(f"{split}: {data.report.summary()}")
            found[split] = data
    if comm.is_main_process():
        comm.synchronize()
    if "train" in found and "val" in found:
        check_same_classes(found["train"], found["val"])
    known = next(iter(found.values()))
    set_num_classes(cfg, known.class_names)
    logger.info(f"{known.num_classes} classes: {', '.join(known.class_names)}")
    return found.get("train"), found.get("val")


def resolve_lengths(cfg: DictConfig, train: DetectionData) -> Lengths:
    """Epochs to iterations."""
    images = float(len(train))
    if cfg.data.filter_empty:
        images -= train.report.empty_images
    labelled, share = train.report.labelled_images, cfg.data.classification_share
    if 0 < labelled < images:
        # An epoch is a pass over the images with boxes.
        images = (images - labelled) / (1 - share) if share < 1 else labelled
    per_epoch = max(images / cfg.data.batch_size, 1e-9)
    if cfg.train.max_iter is None and not cfg.train.epochs:
        raise InputError("Either train.epochs or train.max_iter must be set.")
    max_iter = cfg.train.max_iter or max(1, round(cfg.train.epochs * per_epoch))

    def period(node: DictConfig) -> int:
        if node.period_iters is not None:
            return int(node.period_iters)
        return max(1, round(node.period_epochs * per_epoch)) if node.period_epochs else 0

    return Lengths(max_iter, per_epoch, period(cfg.eval), period(cfg.train.checkpoint))


def check_best_metric(metric: str | None, class_names: Sequence[str]) -> None:
    """Raise InputError if no evaluation will ever give this number."""
    names = [*METRICS, *(f"AP-{name}" for name in class_names if len(class_names) > 1)]
    allowed = [f"bbox/{name}" for name in names]
    if metric is not None and metric not in allowed:
        shown = ", ".join(allowed[: len(METRICS) + 2])
        raise InputError(
            f"train.checkpoint.best_metric is {metric!r}, expected one of {shown}"
            f"{', ...' if len(allowed) > len(METRICS) + 2 else ''} or null."
        )


def build_model(cfg: DictConfig, device: torch.device, seed: int) -> nn.Module:
    """The model with its initial weights, which depend on the seed alone."""
    torch.manual_seed(seed)
    model: nn.Module = build(cfg, "model").to(device)
    if cfg.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info(f"{type(model).__name__}: {parameters / 1e6:.2f} M parameters")
    return model


def prepare_for_labels(model: nn.Module, data: DetectionData) -> None:
    """Tell the model what labels without boxes the data has, if any.

    Raises:
        InputError: it does not know them, or can only learn from boxes.
    """
    if not data.report.labelled_images:
        return
    learn = getattr(model, "learn_labels", None)
    if learn is None:
        raise InputError(
            f"{data.report.labelled_images} images to train on have labels without boxes, which "
            f"{type(model).__name__} cannot learn from (YOLO9000 can): unset "
            "dataset.train.classification and leave out annotations without bbox."
        )
    learn(data.class_names, data.label_names)


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the model's parameters, at the learning rate of the configuration."""
    optimizer: torch.optim.Optimizer = build(cfg, "optimizer", **{"params.model": model})
    return optimizer


def learning_rate_scale(cfg: DictConfig) -> float:
    """Linear in the batch size (Goyal et al., arXiv:1706.02677, section 2.1)."""
    reference = cfg.train.lr_batch_size
    return cfg.data.batch_size / reference if reference else 1.0


def build_schedule(cfg: DictConfig) -> Schedule:
    """The learning-rate schedule."""
    schedule = build(cfg, "schedule")
    if not isinstance(schedule, Schedule):
        raise InputError(f"'schedule' must build a Schedule, not a {type(schedule).__name__}.")
    return schedule


def build_evaluation(
    cfg: DictConfig, val: DetectionData, output_dir: Path, device: torch.device
) -> CocoEvaluation:
    """The evaluation that the configuration asks for."""
    precision = Precision(
        device, enabled=cfg.eval.amp and cfg.train.amp.enabled, dtype=cfg.train.amp.dtype
    )
    workers = cfg.data.workers if cfg.eval.workers is None else cfg.eval.workers
    return CocoEvaluation(
        val,
        output_dir=output_dir,
        augmentations=build(cfg, "data.val_augmentations"),
        image_format=cfg.data.image_format,
        on_bad_image=cfg.data.on_bad_image,
        batch_size=cfg.eval.batch_size,
        workers=workers,
        max_images=cfg.eval.max_images,
        max_detections=cfg.eval.max_detections,
        fuse=cfg.eval.fuse,
        visualize=cfg.eval.visualize,
        visualize_threshold=cfg.eval.visualize_threshold,
        autocast=precision.autocast,
    )


def initialize_weights(model: nn.Module, path: str | None, *, strict_classes: bool) -> None:
    """Load ``train.init_checkpoint``, if there is one, and say what matched."""
    if path:
        report = load_weights(model, path, strict_classes=strict_classes)
        logger.info(report.summary())
