"""Communication between the processes of a job; every function also works without a job."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# The group of this machine's processes. A list, so that no function has to rebind a module global.
_local_groups: list[dist.ProcessGroup] = []


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the job, 1 without a job."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Rank of this process in the job, 0 without a job."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this process has rank 0."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the group of each machine's processes; all processes of the job must call it.

    Ranks are taken to be contiguous within a machine. ``launch`` calls this; jobs started in
    another way call it once after ``torch.distributed.init_process_group``.

    Args:
        num_workers_per_machine: number of processes on every machine; it divides the world size.

    Raises:
        AssertionError: the group exists already, or the world size is not divisible.
    """
    assert not _local_groups, "the local process group was created before"
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (
        f"a world of {world_size} processes cannot be divided into machines of "
        f"{num_workers_per_machine}"
    )
    machine = get_rank() // num_workers_per_machine
    # new_group is collective over the whole world, so that every process creates every group.
    for first in range(0, world_size, num_workers_per_machine):
        group: Any = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if first // num_workers_per_machine == machine:
            _local_groups.append(group)


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine.

    Raises:
        AssertionError: it has not been created.
    """
    assert _local_groups, (
        "the local process group does not exist: start the processes with detectron2's launch(), "
        "or call comm.create_local_process_group(num_workers_per_machine) after "
        "torch.distributed.init_process_group()"
    )
    return _local_groups[0]


def get_local_rank() -> int:
    """Rank of this process within its machine, 0 without a job."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine, 1 without a job."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize() -> None:
    """Wait until all processes of the job have come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # Naming the device keeps NCCL from guessing it by the rank.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.cache
def _gloo_group() -> Any:
    """All ranks on a backend that carries CPU tensors; objects are pickled into those."""
    if dist.get_backend() == "nccl":
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's ``data`` (anything that pickles), in rank order, on every rank.

    Args:
        data: this rank's object.
        group: default: all ranks.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's ``data`` (anything that pickles), in rank order, on rank ``dst``; else ``[]``.

    Args:
        data: this rank's object.
        dst: the rank that receives.
        group: default: all ranks.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    if dist.get_rank() != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    gathered: list[Any] = [None] * size
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """A seed that all ranks agree on, drawn from rank 0's numpy generator; collective."""
    # The global generator is meant: what seeds it also decides this seed.
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(
    input_dict: dict[str, torch.Tensor], average: bool = True
) -> dict[str, torch.Tensor]:
    """Sum or average scalar tensors over the ranks; only rank 0 holds the result.

    Args:
        input_dict: the same keys on every rank; scalar tensors on the backend's device.
        average: divide by the number of ranks.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    # Ranks may have filled their dicts in different orders.
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= world_size
    return dict(zip(names, values, strict=True))
