"""The distributed engine: a round's network call is split over the ranks of a process group.

For networks of which one call fills a device. Rank 0 runs the sampler; the others serve it. Drafts,
noise and decisions exist on rank 0 alone, so that ranks cannot disagree on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from asd_policy.ambient import as_asked, own_precision
from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.engine.eager import Engine, Result
from asd_policy.errors import CopyError, EngineError
from asd_policy.schedule import Schedule

_STOP, _CONDITION, _EVALUATE = range(3)


class SplitNetwork:
    """A network whose rows are evaluated by all ranks of the default process group.

    Args:
        network: the same on every rank. schedule: of its steps. like: (0, D), on its device.
    """

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        like: Tensor,
    ) -> None:
        self._network, self._shape, self._like = network, shape, like
        self._timesteps = schedule.timesteps.to(like.device)
        self._condition: Tensor | None = None

    # ---- on rank 0: what a denoiser calls --------------------------------------------------------

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """Give every rank the (B, …) conditions of the chunk; returns an empty (B, 0)."""
        sizes = [] if cond is None else list(cond.shape)
        self._announce(_CONDITION, batch, cond is not None, *sizes)
        if cond is not None:
            dist.broadcast(cond.to(self._like).contiguous(), 0)
        self._take(cond, batch)
        return self._like.new_zeros(batch, 0)

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """(N, *shape) points at (N,) steps of (N,) chains → the prediction."""
        rows = len(x)
        if rows < dist.get_world_size():  # not worth a message
            return self._rows(x, steps, chains)
        self._announce(_EVALUATE, rows)
        return self._share(x.reshape(rows, -1).contiguous(), torch.stack([steps, chains]))

    def stop(self) -> None:
        """Let the other ranks go."""
        self._announce(_STOP)

    def _announce(self, *numbers: int) -> None:
        header = torch.zeros(8, dtype=torch.int64, device=self._like.device)
        header[: len(numbers)] = torch.tensor(
            [int(n) for n in numbers], dtype=torch.int64, device=header.device
        )
        try:
            dist.broadcast(header, 0)
        except RuntimeError as error:
            raise EngineError(f"a rank of the process group cannot be reached: {error}") from error

    # ---- on the others ---------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer rank 0 until it stops."""
        header = torch.zeros(8, dtype=torch.int64, device=self._like.device)
        while True:
            dist.broadcast(header, 0)
            what, count, given, *sizes = header.tolist()
            if what == _STOP:
                return
            if what == _CONDITION:
                cond = self._like.new_zeros([n for n in sizes if n]) if given else None
                if cond is not None:
                    dist.broadcast(cond, 0)
                self._take(cond, count)
            else:
                index = torch.zeros((2, count), dtype=torch.int64, device=self._like.device)
                self._share(self._like.new_zeros(count, self._like.shape[1]), index)

    # ---- on all ----------------------------------------------------------------------------------

    def _take(self, cond: Tensor | None, batch: int) -> None:
        if isinstance(self._network, PreparedNetwork):
            cond = self._network.condition(cond, batch)
        self._condition = cond

    def _share(self, x: Tensor, index: Tensor) -> Tensor:
        """Take rank 0's rows (N, D) and their (2, N) steps and chains, do a share, collect."""
        world, rank, rows = dist.get_world_size(), dist.get_rank(), len(x)
        dist.broadcast(x, 0)
        dist.broadcast(index, 0)
        each = -(-rows // world)
        mine = slice(rank * each, min((rank + 1) * each, rows))
        part = x.new_zeros(each, x.shape[1])
        if mine.start < rows:
            points = x[mine].view(-1, *self._shape)
            found = self._rows(points, index[0, mine], index[1, mine])
            part[: len(found)] = found.reshape(len(found), -1)
        parts = [torch.empty_like(part) for _ in range(world)]
        dist.all_gather(parts, part)
        return torch.cat(parts)[:rows].view(-1, *self._shape)

    def _rows(self, x: Tensor, steps: Tensor, chains: Tensor) -> Tensor:
        if isinstance(self._network, PreparedNetwork):
            assert self._condition is not None
            return self._network.evaluate(x, steps, chains, self._condition)
        cond = None if self._condition is None else self._condition[chains]
        with as_asked():
            return self._network(x, self._timesteps[steps], cond)


class DistributedEngine(Engine):
    """An :class:`Engine` whose network calls are split over ranks.

    Every rank makes one with the same network. Rank 0 draws, and ends with :meth:`close`; the
    others call :meth:`serve`, which returns when rank 0 has closed.
    """

    name = "distributed"

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        *options: Any,
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise EngineError(
                "the distributed engine needs a process group: start the ranks with torchrun and "
                "call torch.distributed.init_process_group() in each"
            )
        super().__init__(network, schedule, shape, *options)
        self._split = SplitNetwork(network, schedule, self.shape, self.like)
        self.network = self._split
        self.ranks = dist.get_world_size()

    def __getstate__(self) -> NoReturn:
        raise CopyError(
            "a distributed engine belongs to the ranks of its process group and cannot be copied: "
            "make another on every rank, as DiffusionPolicy.load(…, engine='distributed') does"
        )

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """On rank 0, do it; meanwhile the others serve. Every rank calls this."""
        if dist.get_rank():
            self.serve()
            return None
        try:
            return work()
        finally:
            self.close()

    @torch.inference_mode()
    @own_precision()
    def serve(self) -> None:
        """On ranks other than 0: evaluate rows for rank 0 until it closes."""
        if dist.get_rank() == 0:
            raise EngineError("rank 0 draws; serve() is for the other ranks")
        self._split.serve()

    def close(self) -> None:
        """On rank 0: release what is kept, and let the other ranks' :meth:`serve` return."""
        super().close()
        if dist.get_rank() == 0:
            self._split.stop()
