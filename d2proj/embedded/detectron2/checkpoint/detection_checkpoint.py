"""Checkpoints of detectors: torch's ``.pth`` and the model zoo's ``.pkl``."""

import logging
import os
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ._safe_pickle import load_arrays
from .c2_model_loading import align_and_update_state_dicts

# Statistics of the input that every model has from its own configuration.
_INPUT_STATISTICS = ("pixel_mean", "pixel_std")


class DetectionCheckpointer(Checkpointer):
    """fvcore's Checkpointer that loads the model zoo's files too, and never runs code of a file's.

    A path may end in ``?matching_heuristics=True``: names are then matched by their endings, as in
    files that ask for it themselves (see ``align_and_update_state_dicts``).

    Args:
        model: The model, wrapped for data parallelism or not.
        save_dir: Where checkpoints go, with ``last_checkpoint`` naming the latest.
        save_to_disk: Whether to save; by default only the main process does.
        **checkpointables: Objects with ``state_dict`` to save along.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager
        self._is_distributed = isinstance(model, DistributedDataParallel)
        self._match_by_ending = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; a file that only the main process has is sent to the others.

        Args:
            path: File or URL, "" for none.
            *args: For fvcore's Checkpointer.
            **kwargs: For fvcore's Checkpointer.

        Returns:
            What the file holds besides model and checkpointables.

        Raises:
            OSError: no file, not even in the main process.
            pickle.UnpicklingError: the file holds more than tensors, arrays and plain containers.
        """
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        missing_somewhere = False
        if path and self._is_distributed:
            local_path = self.path_manager.get_local_path(path.partition("?")[0])
            present = comm.all_gather(os.path.isfile(local_path))
            if not present[0]:
                raise OSError(f"File {path} not found on main worker.")
            missing_somewhere = not all(present)
            if not os.path.isfile(local_path):
                path = ""
        if path:
            parsed = urlparse(path)
            queries = parse_qs(parsed.query)
            self._match_by_ending = queries.pop("matching_heuristics", ["False"]) == ["True"]
            if queries:
                raise ValueError(
                    f"Unsupported query remaining: {queries}, orginal filename: {path}"
                )
            path = self.path_manager.get_local_path(parsed._replace(query="").geturl())
        try:
            extra = super().load(path, *args, **kwargs)
        finally:
            self._match_by_ending = False
        if missing_somewhere:
            self._send_model_from_main_process()
        return extra

    def _send_model_from_main_process(self) -> None:
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_zoo_file(filename)
        loaded = torch.load(filename, map_location="cpu", weights_only=True)
        if "model" not in loaded:
            loaded = {"model": loaded}
        if self._match_by_ending:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_zoo_file(self, filename: str) -> dict[str, Any]:
        with self.path_manager.open(filename, "rb") as file:
            data = load_arrays(file)
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            if self._match_by_ending:
                data["matching_heuristics"] = True
            return data
        # Detectron 1's: the weights themselves, or under "blobs", with the optimizer's momenta.
        blobs = data.get("blobs", data)
        weights = {name: v for name, v in blobs.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(),
                checkpoint["model"],
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        incompatible = super()._load_model(checkpoint)
        for name in _INPUT_STATISTICS:
            if name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        # Buffers that are not saved, but were by an older model.
        persistent = set(self.model.state_dict())
        for name, _ in self.model.named_buffers():
            if name not in persistent and name in incompatible.unexpected_keys:
                incompatible.unexpected_keys.remove(name)
        return incompatible
