"""The keys of the plain nodes ``train``, ``data`` and ``eval``, and what they may hold.

The values are in ``configs/common/``; here stand only the kinds, so that a wrong one is one worded
error before any work is done, whether it came from a file or from the command line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

from d2proj.errors import InputError


@dataclass(frozen=True)
class Option:
    """What a key may hold.

    Attributes:
        kind: the Python type; ``float`` admits int as well.
        null: whether the key may be null.
        low: smallest value, for numbers.
        choices: the only values, for strings.
    """

    kind: type
    null: bool = False
    low: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is expected instead of ``value``, or None if it will do."""
        if value is None:
            return None if self.null else self.expected()
        if not matches_type(value, self.kind):
            return self.expected()
        if self.low is not None and not value >= self.low:
            return self.expected()
        return self.expected() if self.choices and value not in self.choices else None

    def expected(self) -> str:
        """The admitted values in words."""
        words = " | ".join(self.choices) or TYPE_NAMES[self.kind]
        if self.low is not None:
            words += f" >= {self.low:g}"
        return words + (" or null" if self.null else "")


TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a set of keys",
}

TRAIN: dict[str, Option] = {
    "output_dir": Option(str, null=True),
    "init_checkpoint": Option(str, null=True),
    "seed": Option(int, low=-1),
    "device": Option(str),
    "epochs": Option(float, null=True, low=0),
    "max_iter": Option(int, null=True, low=1),
    "lr_batch_size": Option(int, low=0),
    "amp.enabled": Option(bool),
    "amp.dtype": Option(str, choices=("bf16", "fp16")),
    "clip_grad.max_norm": Option(float, null=True, low=0),
    "clip_grad.norm_type": Option(float, low=0),
    "ema.enabled": Option(bool),
    "ema.decay": Option(float, low=0),
    "ema.warmup_iters": Option(int, low=0),
    "channels_last": Option(bool),
    "deterministic": Option(bool),
    "ddp.find_unused_parameters": Option(bool),
    "ddp.broadcast_buffers": Option(bool),
    "log_period": Option(int, low=1),
    "tensorboard": Option(bool),
    "checkpoint.period_epochs": Option(float, low=0),
    "checkpoint.period_iters": Option(int, null=True, low=1),
    "checkpoint.keep": Option(int, low=1),
    "checkpoint.best_metric": Option(str, null=True),
    "fast_dev_run": Option(bool),
}
DATA: dict[str, Option] = {
    "batch_size": Option(int, low=1),
    "workers": Option(int, low=0),
    "aspect_ratio_grouping": Option(bool),
    "repeat_threshold": Option(float, low=0),
    "filter_empty": Option(bool),
    "on_bad_image": Option(str, choices=("raise", "skip")),
    "image_format": Option(str, choices=("BGR", "RGB")),
    "train_augmentations": Option(list),
    "batch_augmentations": Option(list),
    "val_augmentations": Option(list),
}
EVAL: dict[str, Option] = {
    "period_epochs": Option(float, low=0),
    "period_iters": Option(int, null=True, low=1),
    "batch_size": Option(int, low=1),
    "workers": Option(int, null=True, low=0),
    "max_images": Option(int, null=True, low=1),
    "max_detections": Option(int, low=1),
    "amp": Option(bool),
    "visualize": Option(int, low=0),
    "visualize_threshold": Option(float, low=0),
}
NODES: dict[str, dict[str, Option]] = {"train": TRAIN, "data": DATA, "eval": EVAL}
TOP_LEVEL = ("model", "dataset", "data", "optimizer", "schedule", "train", "eval")


def check_options(cfg: DictConfig) -> None:
    """Raise InputError unless every plain node has exactly its keys, with values of their kinds."""
    for name in TOP_LEVEL:
        if not isinstance(cfg.get(name), DictConfig):
            raise InputError(
                f"The configuration has no '{name}'; it needs {', '.join(TOP_LEVEL)} "
                "(configs/common/ has them ready to import)."
            )
    if "_target_" not in cfg.model:
        raise InputError("'model' must be a call, L(Class)(...), with '_target_'.")
    for node, options in NODES.items():
        values = dict(_leaves(cfg[node], options))
        for key in values.keys() - options.keys():
            raise InputError(f"{node}.{key} is not a key of '{node}' (docs/command_line.md).")
        for key, option in options.items():
            if key not in values:
                raise InputError(f"{node}.{key} is missing from the configuration.")
            expected = option.problem(values[key])
            if expected:
                raise InputError(f"{node}.{key} must be {expected}, not {values[key]!r}.")


def matches_type(value: Any, kind: type) -> bool:
    """Whether a configuration value is of a kind; bool is no number, int is a float too."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is list:
        return isinstance(value, list | tuple | ListConfig)
    if kind is dict:
        return isinstance(value, Mapping | DictConfig)
    return isinstance(value, kind)


def _leaves(
    node: DictConfig, options: Mapping[str, Option], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name!s}"
        has_children = any(known.startswith(f"{key}.") for known in options)
        if has_children and isinstance(value, DictConfig):
            yield from _leaves(value, options, f"{key}.")
        else:
            yield key, value
