"""The output directory of a run: found, checked and claimed before anything is written."""

import os
import shutil
from pathlib import Path

from detectron2.utils import comm
from omegaconf import DictConfig

from d2proj.errors import InputError

# What marks a directory as taken, and what --overwrite removes besides.
_MARKS = ("config.yaml", "last_checkpoint", "metrics.json", "results.json", "*.pth")
_REMAINS = ("log.txt*", "events.out.tfevents.*", "nonfinite_*.json", "evaluation", "pictures")


def resolve_output_dir(cfg: DictConfig, config_file: Path) -> Path:
    """The directory that the configuration asks for; ``output/<config file>`` if it names none."""
    if cfg.train.output_dir is None:
        stem = config_file.stem
        if stem == "config":  # a saved config.yaml is called after its folder
            stem = config_file.resolve().parent.name
        cfg.train.output_dir = str(Path("output") / stem)
    if cfg.train.fast_dev_run:
        cfg.train.output_dir = str(Path(cfg.train.output_dir) / "fast_dev_run")
    return Path(cfg.train.output_dir)


def traces_of_a_run(folder: Path) -> list[Path]:
    """What an earlier run left in ``folder``."""
    if not folder.is_dir():
        return []
    return sorted(path for pattern in _MARKS for path in folder.glob(pattern))


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool, evaluate: bool) -> None:
    """Raise InputError unless the command may write into ``folder``; changes nothing."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"train.output_dir={folder} is a file, not a directory.")
    traces = traces_of_a_run(folder)
    if traces and not (resume or overwrite or evaluate):
        raise InputError(
            f"{folder} holds another run ({traces[0].name}): continue it with --resume, replace it "
            "with --overwrite, or choose another train.output_dir."
        )
    existing = next(p for p in [folder, *folder.resolve().parents] if p.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"train.output_dir={folder} cannot be written ({existing} is read-only).")


def claim_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Make the directory; with ``overwrite`` remove what an earlier run left, and nothing else.

    The main process does, before the others go on.
    """
    if comm.is_main_process():
        _claim(folder, overwrite)
    comm.synchronize()


def _claim(folder: Path, overwrite: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        patterns = (*_MARKS, *_REMAINS) if overwrite else ()
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise InputError(
            f"train.output_dir={folder} cannot be written: {error.strerror}."
        ) from error
