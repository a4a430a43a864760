"""Reading files: every kind, every damage, and never any code."""

import argparse
import contextlib
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from d2proj.checkpoint import load_weights
from d2proj.checkpoint.files import read_file
from d2proj.checkpoint.unpickler import loads_arrays
from d2proj.errors import InputError

TENSORS = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(20)}
FORMATS = ["torch", "torch-legacy", "safetensors", "pickle"]


class Evil:
    """Pickles to a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write(path, kind, content=None):
    content = TENSORS if content is None else content
    if kind == "safetensors":
        save_file(content, path)
    elif kind == "pickle":
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in content.items()}
        path.write_bytes(pickle.dumps(arrays, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_kinds_are_told_by_content(tmp_path, kind):
    file = read_file(write(tmp_path / "misleading.txt", kind))
    assert file.kind == kind
    for name, tensor in TENSORS.items():
        assert torch.equal(torch.as_tensor(file.content[name]), tensor)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(tmp_path, kind):
    path = write(tmp_path / "weights", kind)
    data = path.read_bytes()
    for keep in (len(data) // 3, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(InputError, match="truncated or damaged"):
            read_file(path)


@pytest.mark.parametrize("kind", ["torch", "torch-legacy", 0, 1, 2, 3, 4, 5])
def test_code_is_refused_and_not_run(tmp_path, kind):
    flag, path = tmp_path / "ran", tmp_path / "weights"
    evil = {"model": {"a": Evil(f"touch {flag}")}}
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(evil, protocol=kind))
    else:
        write(path, kind, evil)
    with pytest.raises(InputError, match=r"contains pickled code \(\w+\.system\)"):
        load_weights(torch.nn.Linear(2, 2), path, strict_classes=False)
    assert not flag.exists()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"cnumpy\nload\n(S'x'\ntR.", id="another name of numpy"),
        pytest.param(b"cnumpy\nload.__globals__\n.", id="attribute of an admitted name"),
        pytest.param(b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", id="getattr"),
        pytest.param(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.", id="object dtype"),
        pytest.param(b"\x80\x04P1\n.", id="persistent id"),
        pytest.param(b"\x80\x04\x82\x01.", id="extension registry"),
    ],
)
def test_pickles_that_reach_out_are_refused(payload):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        loads_arrays(payload)


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([{}, Evil("true")], dtype=object)}))
    with pytest.raises(InputError, match="dtype 'O8'"):
        read_file(path)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol(protocol):
    content = {
        "c": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big-endian": np.arange(3, dtype=">i8"),
        "empty": np.zeros((0, 4), np.float16),
        "scalars": [np.float64(0.5), np.int64(3), np.bool_(True)],
        "plain": OrderedDict(a=[1, None, 2.5, "é", b"\xff", b"", True, (1, {2})]),
    }
    data = pickle.dumps(content, protocol=protocol)
    read, reference = loads_arrays(data), pickle.loads(data)
    assert read["scalars"] == content["scalars"]
    assert read["plain"] == content["plain"]
    for name in ("c", "f", "big-endian", "empty"):
        assert np.array_equal(read[name], content[name])
        assert read[name].dtype == reference[name].dtype  # numpy may swap to native order


def test_pickle_of_python_2():
    """The bytes that Python 2's numpy 1.16 writes for float32 [1, 2] (str data, no bytes type)."""
    python2 = (
        b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\t"
        b"U\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tq\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0ftq\x10bs."
    )
    assert loads_arrays(python2)["w"].tolist() == [1.0, 2.0]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_pickles_only_raise(position, junk):
    data = bytearray(pickle.dumps({"a": np.arange(40.0), "b": [1, "x"]}, protocol=2))
    data[position : position + len(junk)] = junk
    with contextlib.suppress(Exception):  # whatever it is, it is an exception, not a crash
        loads_arrays(bytes(data))
    assert np.dtype("f8").isnative  # numpy's own types are as they were


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "looks like an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x00\x00\x00\x00\x02\x00\x00\x00 darknet", "only a model that was built from its cfg"),
        (b"\x80\x04N.", "holds a NoneType"),
        (b"\x80\x04}.", "holds no tensors"),
    ],
)
def test_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_weights(torch.nn.Linear(2, 2), path, strict_classes=False)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_file(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a folder"):
        read_file(tmp_path)


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(InputError, match="TorchScript"):
        read_file(path)


def test_plain_leftovers_of_training_scripts_are_read(tmp_path):
    """torchvision's scripts store argparse's Namespace, others a numpy metric."""
    content = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "model": TENSORS}
    file = read_file(write(tmp_path / "w.pth", "torch", content))
    assert file.content["best"] == 3.5


def test_nan_weights(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, float("nan"))
    torch.save(model.state_dict(), tmp_path / "nan.pth")
    with pytest.raises(InputError, match="weight hold NaN"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "nan.pth", strict_classes=False)
