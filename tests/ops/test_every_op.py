"""What every op must stand, whatever it computes; the calls are drawn by tests/ops/calls."""

import dataclasses
import os
import random
import re
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from tests.ops.calls import Call, Draw, find

CALLS = find()
#: Seeds that once found something, and the call that they found it in.
FINDINGS: list[tuple[str, int]] = []


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def run(call: Call) -> list[Tensor]:
    """The results, and the gradients if the call is differentiable and its arguments floating."""
    arguments = list(call.arguments)
    wanted = []
    for i in call.differentiable:
        if isinstance(arguments[i], Tensor) and arguments[i].is_floating_point():
            arguments[i] = arguments[i].detach().requires_grad_()
            wanted.append(arguments[i])
    results = tensors(call.function(*arguments))
    found = [r.detach() for r in results]
    through = [r for r in results if r.requires_grad]
    if through:
        ones = [torch.ones_like(r) for r in through]
        grads = torch.autograd.grad(through, wanted, ones, allow_unused=True)
        found += [g for g in grads if g is not None]
    return found


def attempt(name: str, seed: int) -> None:
    """One insane call: it returns, or raises an error that names the op or torch's own argument."""
    call = CALLS[name](Draw(random.Random(seed)))
    try:
        run(call)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        words = str(error)
    else:
        return
    assert words, f"{name}, seed {seed}: an error without words"


@pytest.mark.parametrize("name", CALLS)
def test_insane_arguments_do_not_crash(name: str) -> None:
    """A few seeds of the fuzzer (python -m tests.ops.fuzz), D2PROJ_FUZZ_SEEDS of them."""
    for seed in range(int(os.environ.get("D2PROJ_FUZZ_SEEDS", "60"))):
        attempt(name, seed)


@pytest.mark.parametrize(("name", "seed"), FINDINGS)
def test_what_the_fuzzer_found(name: str, seed: int) -> None:
    attempt(name, seed)


@pytest.mark.parametrize("name", CALLS)
def test_sane_arguments_give_finite_repeatable_results(name: str) -> None:
    for seed in range(12):
        call = CALLS[name](Draw(random.Random(seed), sane=True))
        assert call.sane
        first, second = run(call), run(call)
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b), f"{name}, seed {seed}"
            assert not a.is_floating_point() or a.isfinite().all(), f"{name}, seed {seed}"


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_not_changed(name: str) -> None:
    for seed in range(12):
        call = CALLS[name](Draw(random.Random(seed), sane=True))
        before = [t.clone() for t in tensors(call.arguments)]
        run(call)
        for a, b in zip(before, tensors(call.arguments), strict=True):
            assert torch.equal(a, b), f"{name}, seed {seed}"


@pytest.mark.parametrize("name", CALLS)
def test_several_python_threads(name: str) -> None:
    """The same calls from four threads at once give what they give alone."""
    calls = [CALLS[name](Draw(random.Random(seed), sane=True)) for seed in range(8)]
    alone = [run(call) for call in calls]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(3):
            for i, call in enumerate(calls):
                for a, b in zip(run(call), alone[i], strict=True):
                    if not torch.equal(a, b):
                        wrong.append(f"{name}, seed {i}")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Module(torch.nn.Module):
    """A call whose tensors are inputs; all else is part of the module."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *arguments: Any) -> Any:
        return self.call.function(*arguments)


@pytest.mark.parametrize("name", CALLS)
def test_torch_export(name: str) -> None:
    """The op is in the exported program as one node, and the program computes the same."""
    call = CALLS[name](Draw(random.Random(5), sane=True))
    program = torch.export.export(Module(call), call.arguments, strict=False)
    assert "torch.ops.d2proj." in program.graph_module.code
    got, expected = tensors(program.module()(*call.arguments)), tensors(call())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_torch_compile(name: str) -> None:
    """Without graph breaks; with the eager-like backend, since the graph is what is tested."""
    call = CALLS[name](Draw(random.Random(6), sane=True))
    torch._dynamo.reset()
    compiled = torch.compile(call.function, backend="aot_eager", fullgraph=True)
    for a, b in zip(run(dataclasses.replace(call, function=compiled)), run(call), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_is_refused_in_words(name: str) -> None:
    """No op has a batching rule; torch's fallback must not silently compute something else."""
    call = CALLS[name](Draw(random.Random(3), sane=True))
    i = next(i for i, a in enumerate(call.arguments) if isinstance(a, Tensor))

    def one(argument: Tensor) -> Any:
        arguments = [*call.arguments]
        arguments[i] = argument
        return call.function(*arguments)

    with pytest.raises(RuntimeError, match=re.escape("torch.func.vmap")):
        torch.func.vmap(one)(torch.stack([call.arguments[i]] * 2))
