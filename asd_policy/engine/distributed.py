"""The distributed engine: a round's network call is split over the ranks of a process group.

For networks of which one call fills a device. Every rank has the network's weights; rank 0 runs the
sampler and the others serve it. Drafts, noise and decisions exist on rank 0 alone, so that ranks
cannot disagree on them: they need not have the same random streams, nor round alike.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from asd_policy.ambient import as_asked, asked_for, own_precision
from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.engine import ranks
from asd_policy.engine.eager import Engine, Result
from asd_policy.errors import CopyError, EngineError, InputError
from asd_policy.schedule import Schedule

_numbers = itertools.count(1)  # of engines, rank 0's
_gone: list[int] = []  # engines that rank 0 has no more
# On the other ranks: all that there are, and those that came from rank 0.
_served: weakref.WeakValueDictionary[int, SplitNetwork] = weakref.WeakValueDictionary()
_given: dict[int, SplitNetwork] = {}


class SplitNetwork:
    """A network whose rows are evaluated by all ranks of the default process group.

    Args:
        network: the same on every rank. schedule: of its steps. like: (0, D), on its device.
        number: by which ranks know it.
    """

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        like: Tensor,
        number: int,
    ) -> None:
        self._network, self._shape, self._like = network, shape, like
        self._timesteps = schedule.timesteps.to(like.device)
        self._condition: Tensor | None = None
        self._number, self._failure = number, ""
        self._error: Exception | None = None  # rank 0's own

    # ---- on rank 0: what a denoiser calls --------------------------------------------------------

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """Give every rank the (B, …) conditions of the chunk; returns an empty (B, 0)."""
        with ranks.speaking():
            ranks.say(ranks.CONDITION, self._number)
            ranks.give(ranks.packed((cond, batch, asked_for())))
        self._take(cond, batch)
        return self._like.new_zeros(batch, 0)

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """(N, *shape) points at (N,) steps of (N,) chains → the prediction.

        Raises:
            EngineError: another rank failed, or has ended.
        """
        rows = len(x)
        if rows < dist.get_world_size():  # not worth a message
            return self._rows(x, steps, chains)
        index = torch.stack([steps, chains], 1)
        each = -(-rows // dist.get_world_size())
        with ranks.speaking():
            ranks.say(ranks.EVALUATE, self._number, rows, each)
            parts = ranks.share(x.reshape(rows, -1), each), ranks.share(index, each)
            own = self._scatter(each, *parts)
            found = self._gather(self._share(*own, rows, each))
            assert found is not None
            if failed := found[:, -1].nonzero().view(-1).tolist():
                self._raise(failed[0], rows, each)
        return found[:, :-1].reshape(-1, x[0].numel())[:rows].view(-1, *self._shape)

    def tell(self, failed: bool, content: object) -> None:
        """Give the ranks that wait for the end of this work what came of it."""
        with ranks.speaking():
            ranks.say(ranks.RESULT, self._number)
            ranks.give(ranks.packed((failed, content)))

    def stop(self) -> None:
        """Let the ranks that serve this network go."""
        with ranks.speaking():
            ranks.say(ranks.STOP, self._number)

    def _raise(self, rank: int, rows: int, each: int) -> NoReturn:
        ranks.say(ranks.EXPLAIN, self._number, rank)
        why = ranks.take(rank).decode()
        share = len(range(rank * each, min((rank + 1) * each, rows)))
        raise EngineError(f"rank {rank} failed at its {share} of {rows} rows: {why}")

    # ---- on the others ---------------------------------------------------------------------------

    def answer(self, what: int, rows: int, each: int) -> None:
        """Do a share of what rank 0 has announced."""
        if what == ranks.CONDITION:
            self._failure = ""
            cond, batch, asked = ranks.unpacked(ranks.take(), self._like.device)
            self._try(self._check_precision, asked)
            self._try(self._take, cond, batch)
        elif what == ranks.EVALUATE:
            self._gather(self._share(*self._scatter(each), rows, each))
        elif rows == dist.get_rank():  # EXPLAIN, which gives a rank
            ranks.give(self._failure.encode(), rows)
            self._failure = ""
        else:
            ranks.take(rows)

    def _check_precision(self, asked: object) -> None:
        if asked != asked_for():
            raise EngineError(
                f"autocast and precision of products must be the same on every rank; rank 0 has "
                f"{asked}, this one {asked_for()}"
            )

    def _try(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do it; a failure is told at the next evaluation, for rank 0 waits for this rank then."""
        try:
            return work(*arguments)
        except Exception as error:
            self._failure = self._failure or f"{type(error).__name__}: {error}"
            return None

    # ---- on all ----------------------------------------------------------------------------------

    def _take(self, cond: Tensor | None, batch: int) -> None:
        if isinstance(self._network, PreparedNetwork):
            cond = self._network.condition(cond, batch)
        self._condition = cond

    def _scatter(
        self, each: int, x: list[Tensor] | None = None, index: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """This rank's (each, D) points and (each, 2) steps and chains, of rank 0's."""
        with ranks.travelling():
            mine = self._like.new_empty(each, self._like.shape[1])
            which = torch.empty((each, 2), dtype=torch.int64, device=mine.device)
        ranks.scatter(mine, x)
        ranks.scatter(which, index)
        return mine, which

    def _share(self, x: Tensor, index: Tensor, rows: int, each: int) -> Tensor:
        """(each·D + 1) numbers: predictions of the share, and whether it failed."""
        out = x.new_zeros(x.numel() + 1)
        count = min(max(rows - dist.get_rank() * each, 0), each)
        if not count:
            return out
        given = x[:count].view(-1, *self._shape), index[:count, 0], index[:count, 1]
        if dist.get_rank() == 0:
            found = self._rank_0s(*given)
        else:
            found = None if self._failure else self._try(self._rows, *given)
        if found is None:
            out[-1] = 1
        else:
            out[: found.numel()] = found.reshape(-1)
        return out

    def _rank_0s(self, *given: Tensor) -> Tensor | None:
        """Its own share; the others wait for it, so that what it raises is raised when they have
        been heard."""
        try:
            return self._rows(*given)
        except Exception as error:
            self._error = error
            return None

    def _gather(self, part: Tensor) -> Tensor | None:
        """(ranks, each·D + 1) of all parts, on rank 0."""
        parts = None
        if dist.get_rank() == 0:
            with ranks.travelling():
                parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        ranks.gather(part, parts)
        if parts is None:
            return None
        if bool(part[-1]):
            assert self._error is not None
            raise self._error
        return torch.stack(parts)

    def _rows(self, x: Tensor, steps: Tensor, chains: Tensor) -> Tensor:
        if isinstance(self._network, PreparedNetwork):
            assert self._condition is not None
            return self._network.evaluate(x, steps, chains, self._condition)
        cond = None if self._condition is None else self._condition[chains]
        with as_asked():
            found = self._network(x.clone(), self._timesteps[steps], cond)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"the network must return the shape it is given, {tuple(x.shape)}; got {got}"
            )
        return found.to(x.dtype)


class DistributedEngine(Engine):
    """An :class:`Engine` whose network calls are split over ranks.

    Every rank makes one of the same network, at the same time; or rank 0 alone, while the others
    are in :meth:`serve` or :func:`follow`, which are given the network then. Whoever calls the
    network leads: :meth:`lead` is for every rank; or rank 0 draws, and ends with :meth:`close`,
    while the others call :meth:`serve`, which returns then.

    Raises:
        EngineError: there is no process group, or the ranks' networks or settings differ.
    """

    name = "distributed"

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        *options: Any,
    ) -> None:
        ranks.check_group()
        super().__init__(network, schedule, shape, *options)
        with ranks.speaking():
            number = _agree(network, schedule, self.shape, self.like)
        self._split = SplitNetwork(network, schedule, self.shape, self.like, number)
        self.network = self._split
        self.ranks, self.leads = dist.get_world_size(), dist.get_rank() == 0
        if dist.get_rank():
            _served[number] = self._split
        else:
            weakref.finalize(self, _gone.append, number)

    def __getstate__(self) -> NoReturn:
        raise CopyError(
            "a distributed engine belongs to the ranks of its process group and cannot be copied: "
            "make another on every rank, as DiffusionPolicy.load(…, engine='distributed') does"
        )

    def lead(self, work: Callable[[], Result]) -> Result:
        """On rank 0, do it; meanwhile the others serve. Every rank calls this, and has the result
        (on the other ranks a copy).

        Raises:
            EngineError: on the other ranks, that rank 0 raised another error.
        """
        if dist.get_rank():
            failed, found = self._until(ranks.RESULT)
            if failed:
                raise EngineError(f"rank 0 ended with: {found}")
            result: Result = found
            return result
        try:
            result = work()
        except BaseException as error:
            with contextlib.suppress(EngineError):  # where it is that they have gone
                self._split.tell(True, f"{type(error).__name__}: {error}")
            raise
        self._split.tell(False, result)
        return result

    def serve(self) -> None:
        """On ranks other than 0: evaluate rows for rank 0 until it closes this engine."""
        if dist.get_rank() == 0:
            raise EngineError("rank 0 draws; serve() is for the other ranks")
        self._until(ranks.STOP)

    @torch.inference_mode()
    @own_precision()
    def _until(self, end: int) -> Any:
        return _serve(self.like.device, self._split, end)

    def release(self) -> None:
        """Release what is kept; other ranks go on as they do."""
        super().close()

    def close(self) -> None:
        """On rank 0: release what is kept, and let the other ranks' :meth:`serve` return."""
        super().close()
        if dist.get_rank() == 0:
            with contextlib.suppress(EngineError):  # they have gone already
                self._split.stop()


@torch.inference_mode()
@own_precision()
def follow() -> None:
    """On ranks other than 0: serve whatever engines rank 0 makes, until it calls
    :func:`dismiss`."""
    _serve(ranks.wire())


def dismiss() -> None:
    """On rank 0: let the ranks that :func:`follow` go."""
    with contextlib.suppress(EngineError), ranks.speaking():  # they may have gone already
        ranks.say(ranks.END)


def _serve(device: torch.device, until: SplitNetwork | None = None, end: int = ranks.END) -> Any:
    """Answer rank 0 until it says that of this network, or leaves; what came of its work."""
    while True:
        what, number, *sizes = ranks.hear()
        if what == ranks.END:
            return False, None
        if what == ranks.MAKE:
            _make(device, number)
            continue
        split = _served.get(number)
        if split is None and what == ranks.STOP:  # of an engine that is gone here already
            continue
        if split is None:
            raise EngineError(
                f"rank 0 uses a distributed engine that rank {dist.get_rank()} has no more; every "
                "rank must make the same engines in the same order, and keep them"
            )
        content = ranks.take() if what == ranks.RESULT else None
        if split is until and what == end:
            return None if content is None else ranks.unpacked(content, device)
        if what not in (ranks.RESULT, ranks.STOP):
            split.answer(what, *sizes[:2])


# ---- a new engine ------------------------------------------------------------------------------


def _agree(
    network: Network | PreparedNetwork, schedule: Schedule, shape: tuple[int, ...], like: Tensor
) -> int:
    """Have all ranks the same engine? Its number. Ranks that only serve are sent the network."""
    if dist.get_rank():
        what, number, *_ = ranks.hear()
        if what != ranks.MAKE:
            raise EngineError(
                f"rank {dist.get_rank()} makes a distributed engine while rank 0 does something "
                "else; every rank must make the same engines in the same order"
            )
    else:
        number = next(_numbers)
        ranks.say(ranks.MAKE, number)
    said = ranks.everyones(ranks.description(network, schedule, shape, like))
    if any(each is None for each in said):
        if dist.get_rank():
            ranks.take()
        else:
            _send(network, schedule, shape, like)
    ranks.compare(said)
    return number


def _send(
    network: Network | PreparedNetwork, schedule: Schedule, shape: tuple[int, ...], like: Tensor
) -> None:
    gone, _gone[:] = list(_gone), []
    try:
        content = ranks.packed((network, schedule, shape, like, gone))
    except (pickle.PicklingError, AttributeError, TypeError, CopyError) as error:
        ranks.give(b"")
        name = getattr(network, "__qualname__", type(network).__name__)
        raise EngineError(
            f"the other ranks cannot be sent {name}: define it at the top of a module ({error})"
        ) from error
    ranks.give(content)


def _make(device: torch.device, number: int) -> None:
    """On a rank that serves: take the network of an engine that rank 0 makes."""
    said = ranks.everyones(None)
    assert any(each is None for each in said)
    content = ranks.take()
    if not content:  # it could not be sent
        return
    if torch.cuda.is_available() and said[0]["device"] == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    network, schedule, shape, like, gone = ranks.unpacked(content, device)
    for old in gone:
        _given.pop(old, None)
    _given[number] = _served[number] = SplitNetwork(network, schedule, shape, like, number)
