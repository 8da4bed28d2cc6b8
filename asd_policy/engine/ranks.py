"""The processes that share a network: how rank 0 speaks to the others, and what a silence means.

Rank 0 begins every exchange with a header, so that a rank which only answers always knows what is
coming: a new engine, a chunk's conditions, rows to evaluate, an end.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from asd_policy.denoiser import Network, PreparedNetwork, owner
from asd_policy.errors import EngineError
from asd_policy.interrupts import handled_after
from asd_policy.schedule import Schedule

MAKE, CONDITION, EVALUATE, EXPLAIN, RESULT, STOP, END = range(7)  # what a header can announce
_PATIENCE = timedelta(days=7)  # ranks wait while rank 0 simulates, prints, or is looked at
_lock = threading.RLock()
_travelled: list[Tensor] = []


def check_group() -> None:
    """Raise an EngineError unless this process is in a group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise EngineError(
            "the distributed engine needs a process group: start the ranks with torchrun "
            "(torchrun --nproc-per-node 2 -m asd_policy …) and, in a script of your own, call "
            "torch.distributed.init_process_group() in each"
        )


@contextmanager
def reached() -> Iterator[None]:
    """What PyTorch raises of a rank that has gone, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, EngineError):
            raise
        who = "rank 0" if dist.get_rank() else "a rank"
        raise EngineError(
            f"{who} of the process group has ended or cannot be reached, so that rank "
            f"{dist.get_rank()} cannot go on: start all ranks again "
            f"({str(error).strip().splitlines()[0]:.120})"
        ) from error


def travelling() -> AbstractContextManager[None]:
    """For what is sent or received: older PyTorch writes to it outside of inference mode."""
    return torch.inference_mode(False)


def wire() -> torch.device:
    """Where headers and objects must lie to be sent."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _kept(*tensors: Tensor) -> None:
    """Keep a reference to what travels for as long as PyTorch has one.

    Gloo's threads let go of an exchange some time after it has ended. A thread whose reference is a
    tensor's last one needs the interpreter's lock, and whoever leaves the group holds that while it
    waits for these threads (PyTorch 2.4: for ever, in one departure of ten to some hundreds).
    """
    used = (tensor for tensor in _travelled if tensor._use_count() > 1)  # type: ignore[attr-defined]
    _travelled[:] = [*used, *tensors]


def broadcast(content: Tensor, source: int = 0) -> None:
    """Send it to every rank, which receives it into its own."""
    _kept(content)
    with reached():
        dist.broadcast(content, source)


def scatter(mine: Tensor, parts: list[Tensor] | None) -> None:
    """Receive this rank's part of those that rank 0 has."""
    _kept(mine, *(parts or ()))
    with reached():
        dist.scatter(mine, parts, 0)


def gather(mine: Tensor, parts: list[Tensor] | None) -> None:
    """Send this rank's part to rank 0, which has a tensor for each."""
    _kept(mine, *(parts or ()))
    with reached():
        dist.gather(mine, parts, 0)


def say(what: int, *numbers: int) -> None:
    """On rank 0: a header of up to four numbers more."""
    content = [what, *numbers] + [0] * (4 - len(numbers))
    with travelling():
        broadcast(torch.tensor(content, dtype=torch.int64, device=wire()))


def hear() -> list[int]:
    """On the others: the next header, however long it takes."""
    with travelling():
        header = torch.zeros(5, dtype=torch.int64, device=wire())
    broadcast(header)
    return header.tolist()


def packed(content: object) -> bytes:
    """An object as bytes. Raises whatever pickling raises."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpacked(content: bytes, device: torch.device) -> Any:
    """The object, its tensors on a device. (From ranks of the same program alone.)"""
    return torch.load(io.BytesIO(content), map_location=device, weights_only=False)


def give(content: bytes, source: int = 0) -> None:
    """Send bytes to every rank, which :func:`take` them."""
    with travelling():
        data = torch.from_numpy(np.frombuffer(bytearray(content), np.uint8)).to(wire())
        broadcast(torch.tensor([len(data)], device=wire()), source)
        broadcast(data, source)


def take(source: int = 0) -> bytes:
    """What the source gives."""
    with travelling():
        size = torch.zeros(1, dtype=torch.int64, device=wire())
        broadcast(size, source)
        data = torch.empty(int(size), dtype=torch.uint8, device=wire())
        broadcast(data, source)
    return data.cpu().numpy().tobytes()


def everyones(content: object) -> list[Any]:
    """What each rank says, on all of them."""
    found = []
    for source in range(dist.get_world_size()):
        if source == dist.get_rank():
            give(packed(content), source)
            found.append(content)
        else:
            found.append(unpacked(take(source), torch.device("cpu")))
    return found


# ---- have all ranks the same? ------------------------------------------------------------------


def description(
    network: Network | PreparedNetwork, schedule: Schedule, shape: tuple[int, ...], like: Tensor
) -> dict[str, Any]:
    """What must be the same on every rank."""
    source = owner(network)
    module = source if isinstance(source, nn.Module) else getattr(source, "network", None)
    return {
        "PyTorch": torch.__version__,
        "device": like.device.type,
        "schedule": schedule.to_dict(),
        "shape": shape,
        "type of numbers": str(like.dtype),
        "network": type(source).__name__,
        "weights": _weights(module) if isinstance(module, nn.Module) else None,
    }


@torch.no_grad()
def _weights(module: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shapes and checksums by name."""
    found = {}
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            found[name] = tuple(tensor.shape), zlib.crc32(content.tobytes())
    return found


def compare(said: list[dict[str, Any] | None]) -> None:
    """Raise an EngineError, the same on every rank, where a :func:`description` differs; None is of
    a rank that only serves."""
    first = said[0]
    assert first is not None
    for rank, other in enumerate(said):
        for name, value in first.items():
            if other is None or other[name] == value:
                continue
            values = "" if isinstance(value, dict) else f" ({other[name]} and {value})"
            raise EngineError(
                f"rank {rank} and rank 0 differ in their {name}{values}; every rank must load the "
                "same network with the same settings"
            )


# ---- commands that torchrun starts -------------------------------------------------------------


@contextmanager
def joined() -> Iterator[int]:
    """The rank of this process in the group that torchrun described; left at the end."""
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local)
    with reached_at_start():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


@contextmanager
def reached_at_start() -> Iterator[None]:
    """The errors of ranks that do not find each other."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"the {os.environ.get('WORLD_SIZE')} ranks that torchrun describes did not find each "
            f"other at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {error}"
        ) from error


@contextmanager
def speaking() -> Iterator[None]:
    """An exchange from its header to its end: neither another thread's nor Ctrl-C comes between,
    after which ranks would wait for different things."""
    with _lock, handled_after():
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C in a terminal reaches all ranks; it is rank 0's to end, and to let the others go."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def share(x: Tensor, each: int) -> list[Tensor]:
    """Rows (N, D) as one (each, D) part for every rank, the last ones padded with zeros."""
    room = x.new_zeros(each * dist.get_world_size(), *x.shape[1:])
    room[: len(x)] = x
    return list(room.split(each))
