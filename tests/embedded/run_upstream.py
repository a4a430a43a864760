"""Run Detectron2's own unit tests on the embedded package.

    python tests/embedded/run_upstream.py DETECTRON2_CHECKOUT [pytest arguments]

The checkout is of Detectron2's public repository; only its ``tests`` folder is used. The embedded
package is forced to the front, installed or not. What the tests import besides the names that this
project uses becomes a placeholder, and the tests that need it are deselected, each for a reason.
"""

import importlib
import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[2]

FILES = [
    "config/test_lazy_config.py",
    "config/test_instantiate_config.py",
    "structures/test_boxes.py",
    "structures/test_imagelist.py",
    "structures/test_instances.py",
    "test_events.py",
    "utils/test_tensorboardx.py",
    "test_scheduler.py",
    "test_solver.py",
    "test_registry.py",
    "test_visualizer.py",
    "data/test_coco.py",
    "data/test_coco_evaluation.py",
    "data/test_dataset.py",
    "data/test_detection_utils.py",
    "data/test_sampler.py",
    "data/test_transforms.py",
    "data/test_rotation_transform.py",
    "test_checkpoint.py",
    "test_engine.py",
]

TORCHSCRIPT = "compiles with torch.jit.script, which torch deprecates and this project never uses"
TRACING = "traces with torch.jit.trace, which this project does not use"
YACS = "needs Detectron2's other configuration system (yacs: get_cfg, configurable)"
MASKS = "needs masks, which no detector of this project predicts"
KEYPOINTS = "needs keypoints, which no detector of this project predicts"
ROTATED = "needs RotatedBoxes, which this project does not use"
NETWORK = "needs a network of Detectron2's own, and the embedded part has none"
ZOO = "needs Detectron2's own configs (model_zoo) and the files of COCO"
COCO = "needs the files of COCO, which are not downloaded here"
CITYSCAPES = "needs the files of Cityscapes, and semantic segmentation"
DOWNLOAD = "downloads its pictures"
FAST_EVAL = "compares pycocotools with Detectron2's compiled evaluation, which is not used"
SHAPELY = (
    "crops polygons with shapely, which this project does not need (runs where it is installed)"
)

# Test (file::class::name; a whole class by file::class) -> why it does not apply.
DESELECTED = {
    "structures/test_boxes.py::TestBoxes::test_scriptability": TORCHSCRIPT,
    "structures/test_imagelist.py::TestImageList::test_imagelist_padding_tracing": TRACING,
    "structures/test_imagelist.py::TestImageList::test_imagelist_scriptability": TORCHSCRIPT,
    "structures/test_imagelist.py::TestImageList::test_imagelist_from_tensors_scriptability": (
        TORCHSCRIPT
    ),
    **{
        f"structures/test_instances.py::TestInstances::{name}": TORCHSCRIPT
        for name in (
            "test_script_new_fields",
            "test_script_access_fields",
            "test_script_len",
            "test_script_has",
            "test_script_to",
            "test_script_getitem",
            "test_from_to_instances",
            "test_script_init_args",
            "test_script_cat",
        )
    },
    "test_scheduler.py::TestScheduler::test_warmup_cosine_end_value": YACS,
    "test_registry.py::TestLocate::test_basic": NETWORK,
    "test_visualizer.py::TestVisualizer::test_overlay_instances": MASKS,
    "test_visualizer.py::TestVisualizer::test_overlay_instances_no_boxes": MASKS,
    "test_visualizer.py::TestVisualizer::test_draw_binary_mask": MASKS,
    "test_visualizer.py::TestVisualizer::test_draw_soft_mask": MASKS,
    "test_visualizer.py::TestVisualizer::test_border_mask_with_holes": MASKS,
    "test_visualizer.py::TestVisualizer::test_border_polygons": MASKS,
    "test_visualizer.py::TestVisualizer::test_overlay_rotated_instances": ROTATED,
    "data/test_coco_evaluation.py::TestCOCOeval::test_fast_eval": FAST_EVAL,
    "data/test_coco_evaluation.py::TestCOCOeval::test_unknown_category": COCO,
    "data/test_dataset.py::TestDataLoader::test_build_dataloader_train": ZOO,
    "data/test_dataset.py::TestDataLoader::test_build_iterable_dataloader_train": ZOO,
    "data/test_dataset.py::TestDataLoader::test_build_iterable_dataloader_from_cfg": YACS,
    **{
        f"data/test_detection_utils.py::TestTransformAnnotations::{name}": reason
        for name, reason in (
            ("test_crop", KEYPOINTS),
            ("test_flip_keypoints", KEYPOINTS),
            ("test_transform_RLE", MASKS),
            ("test_transform_RLE_resize", MASKS),
            ("test_read_sem_seg", CITYSCAPES),
            ("test_opencv_exif_orientation", DOWNLOAD),
            ("test_read_exif_orientation", DOWNLOAD),
        )
    },
    "data/test_transforms.py::TestTransforms::test_apply_rotated_boxes": YACS,
    "data/test_transforms.py::TestTransforms::test_resize_shorted_edge_scriptable": TORCHSCRIPT,
    "test_engine.py::TestTrainer::test_default_trainer": YACS,
    "test_engine.py::TestTrainer::test_setup_config": YACS,
}
if importlib.util.find_spec("shapely") is None:
    DESELECTED["data/test_transforms.py::TestTransforms::test_resize_and_crop"] = SHAPELY

# Names that test files import at their top although only deselected tests use them.
PLACEHOLDERS = {
    "detectron2.config": ["CfgNode", "configurable", "get_cfg"],
    "detectron2.engine": ["DefaultTrainer"],
    "detectron2.evaluation.fast_eval_api": ["COCOeval_opt"],
    "detectron2.export.torchscript": ["patch_instances"],
    "detectron2.model_zoo": ["get_config", "get_config_file"],
    "detectron2.modeling.meta_arch": ["GeneralizedRCNN"],
    "detectron2.solver": ["build_lr_scheduler"],
    "detectron2.structures": ["BitMasks", "RotatedBoxes"],
}


def main(arguments: list[str]) -> int:
    """Run the tests; returns pytest's exit status."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    checkout = Path(arguments[0]).resolve()
    tests = checkout / "tests"
    if not (tests / "test_registry.py").is_file():
        print(f"error: {checkout} is not a checkout of Detectron2", file=sys.stderr)
        return 2
    _import_embedded()
    for module, names in PLACEHOLDERS.items():
        _add_placeholders(module, names)
    _add_testing_helpers()

    import pytest

    files = [str(tests / name) for name in FILES]
    skip = [f"--deselect={name}" for name in DESELECTED]
    # Ids are relative to the root; "importlib" keeps it off sys.path, where
    # the checkout's own package would be found.
    options = ["-c", os.devnull, f"--rootdir={tests}", "--import-mode=importlib"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        return int(pytest.main([*files, *skip, *options, "-p", "no:cacheprovider", *arguments[1:]]))


def _import_embedded() -> None:
    sys.path.insert(0, str(REPO_ROOT / "d2proj" / "embedded"))
    sys.path.insert(1, str(REPO_ROOT))
    import detectron2

    assert Path(detectron2.__file__).is_relative_to(REPO_ROOT), detectron2.__file__


def _add_placeholders(module_name: str, names: list[str]) -> None:
    module = _module(module_name)
    for name in names:
        if not hasattr(module, name):
            setattr(module, name, _Placeholder(f"{module_name}.{name}"))


def _module(name: str) -> types.ModuleType:
    """Import a module; what does not exist is made, as an empty one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it exists, and what it imports does not
    module = types.ModuleType(name)
    parent_name, _, child = name.rpartition(".")
    setattr(_module(parent_name), child, module)
    sys.modules[name] = module
    return module


class _Placeholder:
    """Stands for a name that is not covered; it decorates, and does nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) == 1 and isinstance(arguments[0], types.FunctionType):
            return arguments[0]  # used as a decorator while the test file is imported
        raise AssertionError(f"a test that is not deselected uses {self._name}")


def _add_testing_helpers() -> None:
    """What the tests take from ``detectron2.utils.testing``."""
    from detectron2.config import LazyConfig

    def reload_lazy_config(config: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "config.yaml")
            LazyConfig.save(config, path)
            return LazyConfig.load(path)

    module = _module("detectron2.utils.testing")
    module.reload_lazy_config = reload_lazy_config
    _add_placeholders(
        "detectron2.utils.testing", ["convert_scripted_instances", "reload_script_model"]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
