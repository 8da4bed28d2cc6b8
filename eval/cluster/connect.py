"""The cluster: reaching or starting one, and what fits into it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.plan import Parts


@dataclasses.dataclass(frozen=True)
class Share:
    """So many policies at once, each with so many CPUs and GPUs of its own, and environments of
    one CPU each."""

    policies: int
    cpus: int
    gpus: int
    num_envs: int


def connect(parts: Parts) -> bool:
    """Join the cluster of `--ray ADDRESS`, or start one on this machine. A program that has joined
    one already stays with it. Returns whether `ray.shutdown` is due in the end.

    Raises:
        AsdPolicyError: no cluster there, or it cannot be started.
    """
    if ray.is_initialized():
        return False
    (address,) = parts.ray or ("",)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            _start(parts, quiet)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, Exception …
        ray.shutdown()
        reason = str(error).strip().partition("\n")[0]
        what = f"no Ray cluster was reached at {address}" if address else "Ray did not start here"
        raise AsdPolicyError(f"{what}: {reason}") from error
    return True


def _start(parts: Parts, quiet: dict[str, Any]) -> None:
    """One with room for everything: as many processes as worker processes would be."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    gpus = _gpus_here() if parts.device != "cpu" else 0
    each = _cpus_of_a_policy(parts) + parts.num_envs
    cpus = each * _policies(parts, gpus)
    ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **quiet)


def share(parts: Parts) -> Share:
    """What of the parts fits into what is free on the cluster: a policy for each GPU, or one on
    a CPU where there is none (or `--device cpu`), and environments on the other CPUs.

    Raises:
        AsdPolicyError: not even one policy with one environment has room, or no GPU where
            `--device cuda` asks for one.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    gpus = int(total.get("GPU", 0)) if parts.device != "cpu" else 0
    if parts.device == "cuda" and not gpus:
        raise AsdPolicyError("--device cuda needs a GPU, and the cluster has none")
    cpus = _cpus_of_a_policy(parts)
    if total.get("CPU", 0) < cpus + 1:
        raise AsdPolicyError(
            f"the cluster cannot place an environment: it has {total.get('CPU', 0):g} CPUs, and "
            f"needs {cpus} for the policy and 1 for each environment"
        )
    policies = _policies(parts, max(1, int(free.get("GPU", 0))) if gpus else 0)
    room = int(free.get("CPU", 0))
    policies = max(1, min(policies, room // (cpus + 1)))
    fit = room // policies - cpus  # none: they are waited for
    num_envs = min(parts.num_envs, fit) if fit > 0 else parts.num_envs
    return Share(policies, cpus, 1 if gpus else 0, num_envs)


def _policies(parts: Parts, gpus: int) -> int:
    """No more than there are episodes for."""
    batches = -(-parts.episodes * len(parts.samplers) // parts.num_envs)
    return max(1, min(gpus, batches))


def _cpus_of_a_policy(parts: Parts) -> int:
    return parts.threads or 1


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def cluster_size() -> dict[str, Any]:
    """Of env.json: what the run had."""
    total = ray.cluster_resources()
    return {
        "version": ray.__version__,
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "cpus": int(total.get("CPU", 0)),
        "gpus": int(total.get("GPU", 0)),
    }


@contextmanager
def connected(parts: Parts) -> Iterator[bool]:
    """`connect`, undone where the block raises; else the caller shuts down."""
    ours = connect(parts)
    try:
        yield ours
    except BaseException:
        if ours:
            ray.shutdown()
        raise
