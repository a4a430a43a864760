"""What the benchmarks on bccd stand on: edited cfg files, and tables that are the measured ones."""

import json
from pathlib import Path

import pytest

from benchmarks import bccd, bccd_recipes, zoo
from benchmarks.darknet_cfg import adapt_cfg
from d2proj.darknet.plan import plan_network
from d2proj.engine.config import load_config

CFG = """[net]
width = 416
height=416

[convolutional]
filters=8
size=3
stride=16
pad=1
activation=leaky

[convolutional]
filters=255
activation=linear

[yolo]
mask = 1,2,3
anchors = 1,2, 3,4, 5,6, 7,8
num=4
classes=80

[convolutional]
filters=255
activation=linear
"""


def test_adapted_cfg_is_for_other_data(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(CFG)
    levels = [[[40, 30], [20, 10]]]
    adapt_cfg(
        tmp_path / "a.cfg",
        tmp_path / "new" / "b.cfg",
        num_classes=3,
        size=(64, 96),
        levels=levels,
    )
    plan = plan_network(tmp_path / "new" / "b.cfg")
    assert plan.input == (3, 64, 96)
    (head,) = plan.heads
    assert head.section.numbers("anchors") == [20, 10, 40, 30]
    # The level's own, in the order that was asked for.
    assert head.section.integers("mask") == [1, 0]
    assert plan.layers[head.index - 1].output == (2 * (5 + 3), 4, 6)
    assert "filters=255" in (tmp_path / "new" / "b.cfg").read_text()  # what feeds no [yolo]
    with pytest.raises(ValueError, match=r"1 \[yolo\] sections, not 2"):
        adapt_cfg(
            tmp_path / "a.cfg",
            tmp_path / "c.cfg",
            num_classes=3,
            size=(64, 96),
            levels=levels * 2,
        )


@pytest.mark.parametrize("name", zoo.SYSTEMS)
def test_systems_of_the_zoo_load(name: str) -> None:
    system = zoo.SYSTEMS[name]
    keys = [*bccd.data_overrides(), *bccd.resize_and_flip(64, 96), *system.overrides]
    cfg = load_config(bccd.ROOT / system.config, keys)
    flips = [(a.horizontal, a.vertical) for a in cfg.data.train_augmentations[1:]]
    assert flips == [(True, False), (False, True)]
    assert cfg.model.num_classes is None


@pytest.mark.parametrize("name", bccd_recipes.RECIPES)
def test_recipes_load(name: str) -> None:
    recipe = bccd_recipes.RECIPES[name]
    load_config(bccd.ROOT / recipe.config, [*bccd.data_overrides(), *recipe.overrides])


@pytest.mark.parametrize(
    ("section", "module"), [("zoo", zoo), ("recipes", bccd_recipes)], ids=["zoo", "recipes"]
)
def test_the_page_shows_what_was_measured(section, module) -> None:
    written = module.PAGE.read_text().split(f"<!-- {section} -->\n")[1]
    written = written.split(f"<!-- /{section} -->")[0]
    report = json.loads(module.OUTPUT.read_text())
    assert written == module.table(report).rstrip() + "\n"
    assert not report.get("failed")
