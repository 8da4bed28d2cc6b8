"""Batches of a verification, drawn by several processes side by side.

Each is the one that a single process would draw: its noise depends on the seed, the role and the
batch's number alone, and slopes are learned before the first batch, from batches of their own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache

import torch

from asd_policy.envs.workers import (
    available_cores,
    follow_parent,
    interrupts_held,
    worker_died,
    worker_pool,
)
from asd_policy.errors import OutputError
from asd_policy.eval.studies.verify.draws import Sampling, batch_file, draw_batch
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.oracle import oracle_subject
from asd_policy.eval.studies.verify.roles import roles_of
from asd_policy.eval.studies.verify.store import load_arrays
from asd_policy.eval.studies.verify.subjects import (
    Subject,
    checkpoint_subject,
    moments_file,
    open_checkpoint,
)

Batch = tuple[str, int]  # a role, and a number


def drawn_by_workers(
    options: VerifyOptions, batches: Sequence[Batch]
) -> Generator[Batch, None, None]:
    """Draw and keep these batches, in --workers processes; gives each when it is there. Closing it
    ends the processes.

    Args:
        options: with the folder, which holds the observations.

    Raises:
        AsdPolicyError: what a worker raised, or that one died.
    """
    with worker_pool(options.workers, _start, options) as pool:
        try:
            with interrupts_held():
                drawn = {pool.submit(_draw, *batch): batch for batch in batches}
            future: Future[None]
            for future in as_completed(drawn):
                future.result()
                yield drawn[future]
        except BrokenProcessPool as error:
            raise worker_died() from error


# ---- in a worker -------------------------------------------------------------------------------

_asked: VerifyOptions
_samplings: dict[str, Sampling] = {}


def _start(options: VerifyOptions) -> None:
    global _asked
    follow_parent()
    torch.set_num_threads(options.threads or max(1, available_cores() // options.workers))
    _asked = options


def _draw(name: str, number: int) -> None:
    """Draw a batch, and keep it."""
    assert _asked.out is not None
    if name not in _samplings:
        subject = _subject()
        role = roles_of(_asked, subject)[name]
        _samplings[name] = Sampling(subject, role, _asked.each, _asked.engine, _asked.seed)
    draw_batch(_samplings[name], number, batch_file(_asked.out / "draws" / name, number))


@cache
def _subject() -> Subject:
    if _asked.oracle:
        return oracle_subject(_asked)
    made, path, _ = open_checkpoint(_asked)
    kept = load_arrays(moments_file(_asked))
    if kept is None:
        raise OutputError(f"{moments_file(_asked)} has gone while chunks were drawn")
    return checkpoint_subject(_asked, made, path, kept["windows"], str(kept["origin"]))
