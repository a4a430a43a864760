"""Training and evaluation as the command line does them."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn

from d2proj.checkpoint import TrainingCheckpointer
from d2proj.data import DetectionData, build_train_loader
from d2proj.engine import hooks, setup
from d2proj.engine.checkpoints import Checkpoints
from d2proj.engine.config import build, describe_changes, read_config, save_config
from d2proj.engine.ema import ModelEma
from d2proj.engine.logs import RunLog
from d2proj.engine.output_dir import claim_output_dir
from d2proj.engine.precision import Precision
from d2proj.engine.seeding import choose_seed
from d2proj.engine.trainer import Batch, Trainer
from d2proj.errors import InputError
from d2proj.evaluation import save_results

logger = logging.getLogger(__name__)
# Keys that may change between an interruption and its resumption without a difference in training.
_HARMLESS = (
    "data.workers",
    "eval.",
    "train.checkpoint.",
    "train.log_period",
    "train.output_dir",
    "train.tensorboard",
)


def train(
    cfg: DictConfig, output_dir: Path, *, resume: bool, overwrite: bool, log: RunLog
) -> dict[str, Any]:
    """Train as configured and evaluate; gives the final results (main process; {} elsewhere)."""
    device = setup.prepare_torch(cfg)
    train_data, val_data = setup.load_data(cfg, train=True)
    assert train_data is not None  # load_data raises otherwise
    setup.check_best_metric(cfg.train.checkpoint.best_metric, train_data.class_names)
    lengths = setup.resolve_lengths(cfg, train_data)
    _settle_seed(cfg, output_dir, resume)
    evaluation = setup.build_evaluation(cfg, val_data, output_dir, device) if val_data else None
    trainer = _build_trainer(cfg, train_data, output_dir, device)
    schedule = setup.build_schedule(cfg)
    scale = setup.learning_rate_scale(cfg)
    rate = trainer.optimizer.param_groups[0]["lr"] * scale
    learning_rate = hooks.LearningRate(trainer.optimizer, schedule, scale)
    checkpoints = _build_checkpoints(cfg, trainer, output_dir, lengths, train_data)
    start_iter = checkpoints.resume() if resume else 0
    if not start_iter:
        setup.initialize_weights(
            trainer.plain_model, cfg.train.init_checkpoint, strict_classes=False
        )
        trainer.restart_ema()
    if start_iter >= lengths.max_iter:
        logger.info(f"nothing to do: this run is complete ({start_iter} iterations)")
        return {}
    # Everything that can be wrong with what was given has been found: from here on, it is written.
    claim_output_dir(output_dir, overwrite=overwrite)
    log.write_to(output_dir)
    if evaluation is not None:
        evaluation.prepare()
    if comm.is_main_process():
        save_config(cfg, output_dir / "config.yaml")
        hooks.truncate_metrics(output_dir / "metrics.json", start_iter)
    logger.info(
        f"training from iteration {start_iter} to {lengths.max_iter} "
        f"({lengths.iters_per_epoch:.1f} iterations an epoch), batches of {cfg.data.batch_size}, "
        f"learning rate {rate:.3g}"
    )
    evaluate: hooks.Evaluation | None = None
    if evaluation is not None:
        evaluate = hooks.Evaluation(
            partial(_evaluate_and_save, evaluation, trainer, output_dir), lengths.eval_period
        )
    ordered: list[HookBase | None] = [
        hooks.Signals(),
        learning_rate,
        hooks.ModuleSchedules(),
        hooks.Progress(cfg.train.log_period, lengths.iters_per_epoch),
        evaluate,
        # Metrics reach the disk before the checkpoint that says they need not be done again.
        hooks.Writers(_writers(cfg, output_dir, start_iter), cfg.train.log_period),
        checkpoints,
    ]
    trainer.register_hooks([hook for hook in ordered if hook is not None])
    checkpoints.train(start_iter, lengths.max_iter)
    return evaluate.latest if evaluate else {}


def evaluate_only(
    cfg: DictConfig, output_dir: Path, *, overwrite: bool, log: RunLog
) -> dict[str, Any]:
    """Evaluate ``train.init_checkpoint`` or else ``output_dir``'s run; save ``results.json``."""
    device = setup.prepare_torch(cfg)
    weights, own = _weights_to_evaluate(cfg, output_dir)
    if (output_dir / "results.json").exists() and not (own or overwrite):
        raise InputError(
            f"{output_dir} holds the results of another model: replace them with --overwrite or "
            "choose another train.output_dir."
        )
    _, val_data = setup.load_data(cfg, train=False)
    assert val_data is not None  # load_data raises otherwise
    model = setup.build_model(cfg, device, seed=0)
    setup.initialize_weights(model, weights, strict_classes=True)
    evaluation = setup.build_evaluation(cfg, val_data, output_dir, device)
    claim_output_dir(output_dir, overwrite=False)
    log.write_to(output_dir)
    evaluation.prepare()
    results = evaluation(model)
    if comm.is_main_process():
        save_results(results, output_dir / "results.json")
        logger.info(f"results are in {output_dir / 'results.json'}")
    return results


def _weights_to_evaluate(cfg: DictConfig, output_dir: Path) -> tuple[str, bool]:
    """The weight file, and whether it is this output directory's own."""
    given = cfg.train.init_checkpoint
    last = output_dir / "last_checkpoint"
    if given and not (Path(given).is_file()):
        raise InputError(f"train.init_checkpoint={given} does not exist.")
    if given:
        return given, Path(given).resolve().parent == output_dir.resolve()
    for candidate in (output_dir / "model_final.pth", output_dir / "model_best.pth"):
        if candidate.is_file():
            return str(candidate), True
    if last.is_file():
        return str(output_dir / last.read_text().strip()), True
    raise InputError(
        f"There are no weights to evaluate: set train.init_checkpoint=FILE, or train.output_dir to "
        f"a run's directory ({output_dir} has no checkpoint)."
    )


def _settle_seed(cfg: DictConfig, output_dir: Path, resume: bool) -> None:
    """Draw the seed if asked to; a resumed run keeps its own."""
    recorded = output_dir / "config.yaml"
    if resume and recorded.is_file():
        before = read_config(recorded)
        if cfg.train.seed < 0:
            cfg.train.seed = before.train.seed
        changes = [
            change for change in describe_changes(before, cfg) if not change.startswith(_HARMLESS)
        ]
        if changes:
            logger.warning(
                "the configuration differs from the interrupted run's, which the result will show: "
                + "; ".join(changes)
            )
    cfg.train.seed = choose_seed(cfg.train.seed)


def _build_trainer(
    cfg: DictConfig, data: DetectionData, output_dir: Path, device: torch.device
) -> Trainer:
    model = setup.build_model(cfg, device, cfg.train.seed)
    optimizer = setup.build_optimizer(cfg, model)
    node = cfg.train.ema
    ema = None
    if node.enabled:
        ema = ModelEma(model, decay=node.decay, warmup_iters=node.warmup_iters)
    loader = partial(
        build_train_loader,
        data,
        batch_size=cfg.data.batch_size,
        workers=cfg.data.workers,
        augmentations=build(cfg, "data.train_augmentations"),
        batch_augmentations=build(cfg, "data.batch_augmentations"),
        seed=cfg.train.seed,
        aspect_ratio_grouping=cfg.data.aspect_ratio_grouping,
        repeat_threshold=cfg.data.repeat_threshold,
        filter_empty=cfg.data.filter_empty,
        on_bad_image=cfg.data.on_bad_image,
        image_format=cfg.data.image_format,
    )

    def batches(start_iter: int) -> Iterator[Batch]:
        return iter(loader(start_iter=start_iter))

    loader()  # its checks, before anything is written
    return Trainer(
        _distributed(model, device, cfg.train.ddp),
        batches,
        optimizer,
        precision=Precision(device, enabled=cfg.train.amp.enabled, dtype=cfg.train.amp.dtype),
        seed=cfg.train.seed,
        output_dir=output_dir,
        max_norm=cfg.train.clip_grad.max_norm,
        norm_type=cfg.train.clip_grad.norm_type,
        ema=ema,
    )


def _distributed(model: nn.Module, device: torch.device, options: DictConfig) -> nn.Module:
    """Wrap the model where there are several processes, on CPUs too."""
    if comm.get_world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        model, device_ids=device_ids, **{str(key): value for key, value in options.items()}
    )


def _build_checkpoints(
    cfg: DictConfig, trainer: Trainer, output_dir: Path, lengths: setup.Lengths, data: DetectionData
) -> Checkpoints:
    parts: dict[str, Any] = {"optimizer": trainer.optimizer, "scaler": trainer.precision.scaler}
    if trainer.ema is not None:
        parts["ema"] = trainer.ema
    checkpointer = TrainingCheckpointer(
        trainer.plain_model, output_dir, keep=cfg.train.checkpoint.keep, **parts
    )
    return Checkpoints(
        checkpointer,
        trainer,
        period=lengths.checkpoint_period,
        best_metric=cfg.train.checkpoint.best_metric,
        extra={
            "class_names": list(data.class_names),
            "category_ids": [int(i) for i in data.category_ids],
            "seed": cfg.train.seed,
        },
    )


def _evaluate_and_save(evaluation: Any, trainer: Trainer, output_dir: Path) -> dict[str, Any]:
    results: dict[str, Any] = evaluation(trainer.plain_model)
    if comm.is_main_process():
        save_results(results, output_dir / "results.json")
    return results


def _writers(cfg: DictConfig, output_dir: Path, start_iter: int) -> list[EventWriter]:
    if not comm.is_main_process():
        return []
    writers: list[EventWriter] = [JSONWriter(str(output_dir / "metrics.json"))]
    if cfg.train.tensorboard:
        writers.append(TensorboardXWriter(str(output_dir), purge_step=start_iter))
    return writers
