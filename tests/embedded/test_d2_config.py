"""LazyConfig, LazyCall and instantiate."""

import builtins
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Write = Callable[[str, str], str]


def collect(**arguments: Any) -> dict[str, Any]:
    return arguments


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


def test_load_returns_the_public_configs_only(write: Write) -> None:
    path = write("a.py", "x = dict(y={'z': [1, 2]})\n_hidden = dict(a=1)\nn = 3\nlst = [1]\n")
    config = LazyConfig.load(path)
    assert config == {"x": {"y": {"z": [1, 2]}}}
    assert config.x.y.z[1] == 2
    assert LazyConfig.load(path, "n") == 3
    assert LazyConfig.load(path, ("lst", "x")) == ([1], {"y": {"z": [1, 2]}})
    with pytest.raises(KeyError):
        LazyConfig.load(path, "nope")


def test_every_relative_import_is_a_fresh_copy(write: Write) -> None:
    write("base.py", "train = dict(lr=1)\n")
    write("sub/mid.py", "from ..base import train\ntrain.lr = 77\nmid = dict(train=train)\n")
    path = write("top.py", "from .base import train as t\nfrom .sub.mid import mid\nt.new = 2\n")
    config = LazyConfig.load(path)
    assert config == {"t": {"lr": 1, "new": 2}, "mid": {"train": {"lr": 77}}}
    config.t.lr = 5
    assert LazyConfig.load(path).t.lr == 1


def test_a_config_reads_files_beside_it(write: Write) -> None:
    write("y.yaml", "q: {r: 1}\n")
    write("b.py", "u = dict(k=1)\n")
    path = write(
        "a.py",
        "from detectron2.config import LazyConfig\n"
        "y = LazyConfig.load_rel('y.yaml', 'q')\n"
        "u = LazyConfig.load_rel('b.py').u\n",
    )
    assert LazyConfig.load(path) == {"y": {"r": 1}, "u": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("from . import b\n", ImportError),
        ("from .pkg import b\n", ImportError),
        ("from .missing import b\n", ImportError),
        ("import a_package_that_is_not_there\n", ImportError),
        ("from .b import nope\n", (ImportError, KeyError)),
        ("x = = 1\n", SyntaxError),
        ("raise ValueError('boom')\n", ValueError),
    ],
)
def test_a_bad_config_says_what_is_wrong(write: Write, text: str, error: Any) -> None:
    write("b.py", "b = dict(a=1)\n")
    write("pkg/__init__.py", "b = dict(a=1)\n")
    original = builtins.__import__
    try:
        with pytest.raises(error):
            LazyConfig.load(write("a.py", text))
    finally:
        builtins.__import__ = original  # Detectron2 leaves it patched


def test_a_config_that_raises_leaves_import_alone(write: Write, embedded: None) -> None:
    original = builtins.__import__
    path = write("a.py", "import builtins\nseen = builtins.__import__\nfrom .b import nope\n")
    write("b.py", "b = 1\n")
    with pytest.raises(ImportError, match=r"nope.*b\.py"):
        LazyConfig.load(path)
    assert builtins.__import__ is original


@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_only_python_and_yaml_are_read(write: Write, name: str) -> None:
    with pytest.raises(ValueError, match="yaml"):
        LazyConfig.load(write(name, "x = 1\n"))


def test_lazy_call_describes_a_call() -> None:
    call = LazyCall(torch.nn.Conv2d)(in_channels=3, kernel_size=(3, 3))
    assert call == {"in_channels": 3, "kernel_size": [3, 3], "_target_": torch.nn.Conv2d}
    call.out_channels = 4
    assert instantiate(call).weight.shape == (4, 3, 3, 3)
    with pytest.raises(TypeError):
        LazyCall(3)
    with pytest.raises(TypeError):
        LazyCall(torch.nn.ReLU)(True)


def test_instantiate_goes_into_calls_and_lists_alone() -> None:
    relu = LazyCall(torch.nn.ReLU)()
    made = instantiate(
        LazyCall(collect)(one=relu, many=[relu, [relu]], plain={"k": relu}, link="${many[0]}")
    )
    assert isinstance(made["one"], torch.nn.ReLU)
    assert isinstance(made["many"], ListConfig)
    assert isinstance(made["many"][1][0], torch.nn.ReLU)
    assert isinstance(made["link"], torch.nn.ReLU)
    assert made["plain"] == {"k": {"_target_": torch.nn.ReLU}}
    assert instantiate([relu, 3])[1] == 3
    plain = {"k": relu}
    assert instantiate(plain) is plain
    assert instantiate(None) is None


def test_instantiate_finds_targets_by_name_and_by_call() -> None:
    assert isinstance(instantiate({"_target_": "torch.nn.ReLU", "inplace": True}), torch.nn.ReLU)
    assert isinstance(instantiate(LazyCall("torch.nn.ReLU")()), torch.nn.ReLU)
    pointed = LazyCall(LazyCall(getattr)())()
    pointed._target_._target_ = lambda: collect
    pointed.a = 1
    assert instantiate(pointed) == {"a": 1}


def test_dataclasses_survive_calls_and_files(tmp_path: Path) -> None:
    call = LazyCall(collect)(shape=LazyCall(ShapeSpec)(channels=1), given=ShapeSpec(stride=4))
    path = str(tmp_path / "c.yaml")
    LazyConfig.save(OmegaConf.create({"call": call}, flags={"allow_objects": True}), path)
    for config in (call, LazyConfig.load(path).call):
        made = instantiate(config)
        assert made == {"shape": ShapeSpec(channels=1), "given": ShapeSpec(stride=4)}


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"_target_": "no_such_module.f"}, ImportError),
        ({"_target_": "torch.nn.NoSuchLayer"}, ImportError),
        ({"_target_": 3}, AssertionError),
        ({"_target_": torch.nn.ReLU, "nope": 1}, TypeError),
    ],
)
def test_instantiate_errors(config: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        instantiate(config)


def test_a_failing_call_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.ERROR), pytest.raises(TypeError):
        instantiate({"_target_": "torch.nn.ReLU", "nope": 1})
    assert "torch.nn.ReLU" in caplog.text


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    config = DictConfig(
        {"a": LazyCall(count)(x=1, link="${b}"), "b": [1, {"c": None}], "cls": torch.nn.ReLU},
        flags={"allow_objects": True},
    )
    path = str(tmp_path / "c.yaml")
    LazyConfig.save(config, path)
    assert not (tmp_path / "c.yaml.pkl").exists()
    loaded = LazyConfig.load(path)
    assert loaded.a.pop("_target_") == "itertools.count"
    config.a.pop("_target_")
    assert loaded == config
    assert OmegaConf.to_container(loaded)["a"]["link"] == "${b}"


def test_what_yaml_cannot_hold_is_pickled_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pickle

    logging.getLogger("detectron2").propagate = True
    config = DictConfig({"f": lambda: 3}, flags={"allow_objects": True})
    with caplog.at_level(logging.WARNING):
        LazyConfig.save(config, str(tmp_path / "c.yaml"))
    assert "c.yaml" in caplog.text
    assert pickle.loads((tmp_path / "c.yaml.pkl").read_bytes()).f() == 3


def test_to_py_reads_like_python(embedded: None) -> None:
    config = OmegaConf.create(
        {
            "train": {"lr": 0.1, "name": 'a "b"', "none": None},
            "model": {
                "_target_": "torch.nn.Conv2d",
                "in_channels": 3,
                "norm": {"_target_": "torch.nn.BatchNorm2d", "num_features": 64, "eps": 1e-05},
                "list": [1, 2.5, "three", True],
            },
        }
    )
    assert LazyConfig.to_py(config) == (
        "cfg.model = torch.nn.Conv2d(\n"
        "    in_channels=3,\n"
        '    list=[1, 2.5, "three", True],\n'
        "    norm=torch.nn.BatchNorm2d(eps=1e-05, num_features=64),\n"
        ")\n"
        "cfg.train.lr = 0.1\n"
        'cfg.train.name = "a \\"b\\""\n'
        "cfg.train.none = None\n"
    )


def example() -> DictConfig:
    return OmegaConf.create({"a": {"b": {"c": 1}, "l": [1, {"m": 3}]}, "n": None, "s": "x", "v": 0})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-1", -1), ("+1", 1), ("1_000", 1000), ("007", "007"), ("1.5", 1.5),
        (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("-1.5E+2", -150.0), ("1e", "1e"),
        ("inf", float("inf")), ("-inf", float("-inf")), ("true", True), ("False", False),
        ("yes", "yes"), ("null", None), ("NULL", None), ("None", "None"), ("", ""),
        ("abc", "abc"), ("a b", "a b"), ("  a  ", "a"), ("/x/y.pth", "/x/y.pth"),
        ("10:20", "10:20"), ("1.2.3", "1.2.3"), ("a\\,b", "a,b"), ("a\\=b", "a=b"),
        ("C:\\\\x", "C:\\x"), ("a\\b", "a\\b"), ('"1"', "1"), ("'a,b'", "a,b"), ('"null"', "null"),
        ('"a\\"b"', 'a"b'), ("'a\\'b'", "a'b"), ('"a\\\\"', "a\\"), ('"\\t"', "\\t"),
        ("[]", []), ("[1, a, null]", [1, "a", None]), ("[[1,2],[3]]", [[1, 2], [3]]),
        ("[a b, 'c, d']", ["a b", "c, d"]), ("{}", {}), ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ("{a:{b:c}}", {"a": {"b": "c"}}), ("{1:2}", {1: 2}), ("{a:b:c}", {"a": "b:c"}),
        ("${s}", "${s}"), ("p${s}q", "p${s}q"), ("[${s},1]", ["${s}", 1]),
        ("[{a:1},{b:2}]", [{"a": 1}, {"b": 2}]),
    ],
)  # fmt: skip
def test_override_values(text: str, value: Any) -> None:
    config = example()
    assert LazyConfig.apply_overrides(config, [f"v={text}"]) is config
    got = OmegaConf.to_container(config, resolve=False)["v"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("a.b.c=5", "a.b.c", 5),
        ("+a.b.new=5", "a.b.new", 5),
        ("++a.b.c=5", "a.b.c", 5),
        ("new.x.y=5", "new.x.y", 5),
        ("n.x=1", "n.x", 1),
        ("a.l.1.m=8", "a.l", [1, {"m": 8}]),
        ("a.l=[9]", "a.l", [9]),
        ("a.b={e:1}", "a.b", {"c": 1, "e": 1}),
        ("a.b=null", "a.b", None),
        ("a.b=5", "a.b", 5),
    ],
)
def test_override_keys(override: str, path: str, value: Any) -> None:
    config = LazyConfig.apply_overrides(example(), [override])
    assert OmegaConf.select(config, path) == value


@pytest.mark.parametrize("override", ["a.b.c.d=1", "s.x=1"])
def test_a_value_has_no_keys(override: str) -> None:
    with pytest.raises(KeyError):
        LazyConfig.apply_overrides(example(), [override])


@pytest.mark.parametrize(
    "override",
    ["v", "a..b=1", "a.=1", "a b=1", "~v", "v=[1", "v={a:1", 'v="a', "v=[1,]", "v={k:}", "v=a[0]",
     "v=1,2", "v=(1,2)", "v='x' y"],
)  # fmt: skip
def test_bad_overrides_change_nothing(override: str) -> None:
    config = example()
    with pytest.raises(Exception, match=r"."):
        LazyConfig.apply_overrides(config, [override])
    assert config == example()


@pytest.mark.parametrize("override", ["a.b.new=1", "new=1", "new.x=1", "a.b={z:1}", "+new=1"])
def test_struct_configs_take_no_new_keys(override: str) -> None:
    config = example()
    OmegaConf.set_struct(config, True)
    with pytest.raises(OmegaConfBaseException):
        LazyConfig.apply_overrides(config, [override])


def test_what_the_embedded_grammar_adds(embedded: None) -> None:
    config = LazyConfig.apply_overrides(
        example(), ["a.l[1].m=4", "a.l[0]={k: 1}", "v=http://h/p?q=1&r=é", "s={'b c': 2}"]
    )
    assert config.a.l == [{"k": 1}, {"m": 4}]
    assert config.v == "http://h/p?q=1&r=é"
    assert config.s == {"b c": 2}
    with pytest.raises(ValueError, match=r"'v=\[1'.*column 3"):
        LazyConfig.apply_overrides(config, ["v=[1"])
