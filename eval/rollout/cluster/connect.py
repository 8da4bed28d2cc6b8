"""The cluster: reaching or starting one, and what fits into it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.plan import Parts


@dataclasses.dataclass(frozen=True)
class Share:
    """So many policies at once, each with so many CPUs and GPUs of its own, and environments of
    one CPU each on the same node."""

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
    a CPU where there is none (or `--device cpu`), and its environments on CPUs of its node.

    Raises:
        AsdPolicyError: no node has room for a policy with one environment, or there is no GPU where
            `--device cuda` asks for one.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    gpus = int(total.get("GPU", 0)) if parts.device != "cpu" else 0
    if parts.device == "cuda" and not gpus:
        raise AsdPolicyError("--device cuda needs a GPU, and the cluster has none")
    wanted = _policies(parts, max(1, int(free.get("GPU", 0))) if gpus else 0)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus:
        nodes = [node for node in nodes if node.get("GPU", 0)]
    return fit(nodes, int(free.get("CPU", 0)), wanted, _cpus_of_a_policy(parts), parts.num_envs)


def fit(
    nodes: Sequence[Mapping[str, float]], free_cpus: int, policies: int, cpus: int, num_envs: int
) -> Share:
    """As many of so many policies as there is room for, each with as many of its environments.

    Args:
        nodes: of each node that may hold a policy: its "CPU" and "GPU", free or not. A policy takes
            a GPU where there are any.
        free_cpus: of the whole cluster. Where not even one policy fits into them, it is waited for.
        cpus: of a policy, beside one for each environment.

    Raises:
        AsdPolicyError: no node has room for a policy with one environment.
    """
    gpus = int(any(node.get("GPU", 0) for node in nodes))

    def places(envs: int) -> int:
        each = cpus + envs
        there = [int(node.get("CPU", 0)) // each for node in nodes]
        if gpus:
            there = [min(n, int(node["GPU"])) for n, node in zip(there, nodes, strict=True)]
        return min(sum(there), free_cpus // each) if free_cpus >= cpus + 1 else sum(there)

    fitting = min(policies, places(1))
    if not fitting:
        largest = max((node.get("CPU", 0) for node in nodes), default=0)
        raise AsdPolicyError(
            f"the cluster cannot place an environment: its largest node has {largest:g} CPUs, and "
            f"a policy needs {cpus} there and 1 for each environment"
        )
    envs = next(n for n in range(num_envs, 0, -1) if places(n) >= fitting)
    return Share(fitting, cpus, gpus, envs)


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
