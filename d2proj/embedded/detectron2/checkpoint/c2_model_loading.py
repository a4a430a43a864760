"""Matching the names of a checkpoint with those of a model by their endings."""

import copy
import itertools
import logging
from collections.abc import Mapping, Sequence

import torch
from tabulate import tabulate

__all__ = ["align_and_update_state_dicts"]

_logger = logging.getLogger(__name__)


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Rename a checkpoint's entries to those of a model.

    A model often holds a pretrained part under a longer name: ``backbone.bottom_up.stem.conv1`` for
    ``stem.conv1``. So each of the model's names takes the checkpoint's entry whose name is its
    longest ending.

    Args:
        model_state_dict: The model's.
        ckpt_state_dict: The checkpoint's.
        c2_conversion: Whether the checkpoint may be in Caffe2's naming, which is refused.

    Returns:
        The checkpoint's tensors under the model's names, and under their own what fits nowhere.

    Raises:
        ValueError: the checkpoint is named as Caffe2's are, or one of its entries fits two names.
    """
    if c2_conversion and ckpt_state_dict and all("." not in name for name in ckpt_state_dict):
        raise ValueError(
            "a checkpoint with Caffe2's names needs the real Detectron2: its first entry is "
            f"{sorted(ckpt_state_dict)[0]!r}"
        )
    matches = _match(sorted(model_state_dict), sorted(ckpt_state_dict))
    result: dict[str, torch.Tensor] = {}
    taken: dict[str, str] = {}
    for name, source in matches.items():
        value, expected = ckpt_state_dict[source], tuple(model_state_dict[name].shape)
        if tuple(value.shape) != expected:
            _logger.warning(
                f"Shape of {source} in checkpoint is {tuple(value.shape)}, while shape of {name} "
                f"in model is {expected}. {source} will not be loaded. Please double check and see "
                "if this is desired."
            )
            continue
        if source in taken:
            raise ValueError(
                f"Cannot match one checkpoint key to multiple keys in the model: {source} fits "
                f"{taken[source]} and {name}"
            )
        taken[source] = name
        # A copy: loading must not tie the model's memory to the checkpoint's.
        result[name] = copy.deepcopy(value)
    unmatched = [name for name in ckpt_state_dict if name not in matches.values()]
    result.update({name: ckpt_state_dict[name] for name in unmatched})
    _log_matches(taken, model_state_dict)
    return result


def _match(model_names: Sequence[str], checkpoint_names: Sequence[str]) -> dict[str, str]:
    """Model name → the checkpoint name that is its longest ending, at a dot."""
    known = set(checkpoint_names)
    matches = {}
    for name in model_names:
        parts = name.split(".")
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            if ending in known:
                matches[name] = ending
                break
    return matches


def _log_matches(taken: Mapping[str, str], model_state_dict: Mapping[str, torch.Tensor]) -> None:
    if not taken:
        _logger.warning("No weights in checkpoint matched with model.")
        return
    rows = []
    by_module: dict[str, list[tuple[str, str]]] = {}
    for source, name in taken.items():
        by_module.setdefault(name.rpartition(".")[0], []).append((name, source))
    for _, pairs in sorted(by_module.items()):
        names, sources = zip(*sorted(pairs), strict=True)
        shapes = " ".join(str(tuple(model_state_dict[n].shape)) for n in names)
        rows.append((_group_str(names), _group_str(sources), shapes))
    table = tabulate(
        rows,
        headers=["Names in Model", "Names in Checkpoint", "Shapes"],
        tablefmt="pipe",
    )
    _logger.info(f"Following weights matched with model:\n{table}")


def _longest_common_prefix_str(names: Sequence[str]) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _group_str(names: Sequence[str]) -> str:
    """Write ["a.b", "a.c"] as "a.{b,c}"."""
    prefix = _longest_common_prefix_str(names)
    endings = [name[len(prefix) :] for name in names]
    return prefix + (endings[0] if len(names) == 1 else "{" + ",".join(endings) + "}")
