"""A Ray cluster on this machine, of nodes as small as they can be, that ends for certain."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

# What Ray's processes inherit: the stand-ins are importable in them.
ENVIRON = {
    "PYTHONPATH": str(Path(__file__).parent),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",  # a killed node is known to be dead within seconds
    "RAY_health_check_failure_threshold": "5",
    "RAY_worker_register_timeout_seconds": "300",  # a busy machine starts a worker in a minute
}
_STORE_BYTES = 100_000_000


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[Cluster]:
    """A cluster whose first node has so many CPUs (of no more than Ray's own counting)."""
    with _environ():
        cluster = Cluster()
        try:
            add_node(cluster, cpus, include_dashboard=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Cluster, cpus: int, **options: Any) -> Any:
    """One more node."""
    return cluster.add_node(num_cpus=cpus, num_gpus=0, object_store_memory=_STORE_BYTES, **options)


@contextlib.contextmanager
def _environ() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRON}
    os.environ.update(ENVIRON)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
