"""Checkpoints: torch's and the model zoo's, by name or by ending, and nothing that runs code."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(3, 4)
        self.register_buffer("pixel_mean", torch.zeros(3), persistent=False)


def same_parameters(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def dump(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def test_round_trip_with_last_checkpoint(tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    saver = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert isinstance(saver, Checkpointer)
    PeriodicCheckpointer(saver, 5, max_iter=10).step(4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    content = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert set(content) == {"model", "optimizer", "iteration"}
    other = Net()
    loader = DetectionCheckpointer(other, str(tmp_path))
    assert loader.resume_or_load("", resume=True)["iteration"] == 4
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=False)
    )


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_file(tmp_path, protocol):
    model, source = Net(), Net()
    weights = {k: v.numpy() for k, v in source.state_dict().items()}
    path = dump(tmp_path / "a.pkl", {"model": weights, "__author__": "somebody"}, protocol)
    extra = DetectionCheckpointer(model).load(path)
    assert extra["__author__"] == "somebody"
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=False)
    )


def test_names_by_their_endings(tmp_path):
    model = Net()
    weights = {"0.weight": np.full((4, 3, 1, 1), 2.0), "1.bias": np.full(4, 3.0), "fc": np.ones(1)}
    path = dump(
        tmp_path / "a.pkl", {"model": weights, "__author__": "x", "matching_heuristics": True}
    )
    DetectionCheckpointer(model).load(path)
    assert (model.backbone[0].weight == 2).all()
    assert (model.backbone[1].bias == 3).all()
    torch.save({"model": {"1.bias": torch.full((4,), 5.0)}}, tmp_path / "b.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "b.pth"))
    assert (model.backbone[1].bias == 3).all()
    DetectionCheckpointer(model).load(str(tmp_path / "b.pth") + "?matching_heuristics=True")
    assert (model.backbone[1].bias == 5).all()


def test_longest_ending_wins():
    names = ("body.conv1.weight", "body.res2.conv1.weight")
    model = {name: torch.zeros(1) for name in names}
    loaded = {"conv1.weight": torch.ones(1), "res2.conv1.weight": torch.full((1,), 2.0)}
    aligned = align_and_update_state_dicts(model, loaded, c2_conversion=False)
    assert [aligned[name].item() for name in names] == [1, 2]


def test_other_shapes_are_left_out(tmp_path):
    model = Net()
    before = model.head.weight.clone()
    path = dump(tmp_path / "a.pkl", {"model": {"head.weight": np.ones((2, 2))}, "__author__": "x"})
    DetectionCheckpointer(model).load(path)
    assert torch.equal(model.head.weight, before)


def test_missing_file():
    with pytest.raises(AssertionError, match="not found"):
        DetectionCheckpointer(Net()).load("/there/is/no.pkl")
    assert DetectionCheckpointer(Net()).load("") == {}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_run_no_code(tmp_path, embedded):
    victim = str(tmp_path / "victim")
    content = {"model": {"head.bias": np.zeros(4)}, "__author__": "x", "extra": Evil(victim)}
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        DetectionCheckpointer(Net()).load(dump(tmp_path / "a.pkl", content))
    torch.save({"model": {}, "extra": Evil(victim)}, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        DetectionCheckpointer(Net()).load(str(tmp_path / "a.pth"))
    assert not os.path.exists(victim)


def test_caffe2_names_are_refused(tmp_path, embedded):
    path = dump(tmp_path / "a.pkl", {"blobs": {"conv1_w": np.ones(3)}})
    with pytest.raises(ValueError, match="Caffe2"):
        DetectionCheckpointer(Net()).load(path)
