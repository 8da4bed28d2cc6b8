"""What a server adds, and whether it lasts: `python -m asd_policy.serving.measure`.

    roundtrip   round trips over loopback beside the bare policy, with 1, 8 and 32 clients
    soak        clients at a control rate for as long as is asked, and the server's memory

Both start `asd-policy serve` in a process of its own, and print JSON, or write it to ``--out``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from asd_policy.errors import AsdPolicyError, ServerError
from asd_policy.files import check_writable, replacing
from asd_policy.policy.warmup import warm_up
from asd_policy.serving.client import Client
from asd_policy.serving.echo import echoing
from asd_policy.serving.remote import RemotePolicy
from asd_policy.terminal import room_for_help

Json = dict[str, Any]
_READY = "serving "


def main_roundtrip(
    checkpoint: str = "lift",
    sampler: str = "asd",
    clients: tuple[int, ...] = (1, 8, 32),
    chunks: int = 200,
    wait_ms: float = 0.0,
    device: str = "auto",
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Time round trips over loopback, beside the policy in this process without a server.

    One client's chunks and the bare policy's take turns, on the same observations and seeds.

    Args:
        checkpoint: As for `asd-policy serve`.
        sampler: How chunks are drawn.
        clients: How many there are at once, one measurement for each.
        chunks: How many each client asks for.
        wait_ms: As for `asd-policy serve`.
        device: Where the policies run.
        out: The file to write; None prints.
    """
    _check(out)
    words = ["--checkpoint", checkpoint, "--sampler", sampler, "--wait-ms", str(wait_ms)]
    found: Json = {"checkpoint": checkpoint, "sampler": sampler, "wait_ms": wait_ms}
    with server([*words, "--device", device]) as (_, address):
        found |= beside_bare(address, checkpoint, sampler, chunks, device)
        found["clients"] = [at_once(address, number, chunks) for number in clients]
    _keep(found, out)


def main_soak(
    checkpoint: str = "lift",
    sampler: str = "asd",
    clients: int = 8,
    rate_hz: float = 20.0,
    seconds: float = 3600.0,
    wait_ms: float = 0.0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Act with several clients at a control rate, and watch the server's memory.

    Each client has episodes of 200 steps, and a new connection for every fifth.

    Args:
        checkpoint: As for `asd-policy serve`.
        sampler: How chunks are drawn.
        clients: How many act at once.
        rate_hz: Control steps a second of each.
        seconds: How long.
        wait_ms: As for `asd-policy serve`.
        out: The file to write; None prints.
    """
    _check(out)
    # What all of them need is compiled before it serves, and is no growth.
    words = ["--checkpoint", checkpoint, "--sampler", sampler, "--wait-ms", str(wait_ms)]
    with server([*words, "--robots", str(clients)]) as (process, address):
        found = soak(process.pid, address, clients, rate_hz, seconds)
    _keep({"checkpoint": checkpoint, "sampler": sampler, **found}, out)


# ---- the server ---------------------------------------------------------------------------------


@contextlib.contextmanager
def server(words: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`asd-policy serve` with these words at a free port: its process, and its address.

    Raises:
        ServerError: it ended at once; its message is on stderr.
    """
    command = [sys.executable, "-m", "asd_policy", "serve", "--port", "0", "--idle-s", "3600"]
    process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(_READY):
            raise ServerError(f"`asd-policy serve {' '.join(words)}` did not start")
        yield process, line.split()[-1]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def memory_mb(pid: int) -> float:
    """MiB of a process that are in memory."""
    words = ["ps", "-o", "rss=", "-p", str(pid)]
    done = subprocess.run(words, capture_output=True, text=True)
    if not done.stdout.strip():
        raise ServerError(f"the server's process {pid} has ended")
    return int(done.stdout) / 1024


# ---- round trips --------------------------------------------------------------------------------


def beside_bare(address: str, checkpoint: str, sampler: str, chunks: int, device: str) -> Json:
    """One client and the bare policy, in turns: both see the same, so that ``more_ms`` is of two
    chunks of as many calls. In between, a message goes to a server that only sends it back
    (``echo_ms``): what the machine and the library take."""
    from asd_policy.device import resolve_device
    from asd_policy.integrations.loaders import open_policies

    place: Json = {"device": resolve_device(device), "engine": "auto", "precision": "fp32"}
    bare = open_policies(checkpoint, place | {"compile": False, "threads": None})(
        {"sampler": sampler}
    )
    warm_up(bare)  # as the server's
    bare.reset(0)
    here, observed, there, added, echoed, equal = [], [], [], [], [], True
    with Client(address + "/?seed=0") as client, echoing() as echo:
        for number in range(chunks):
            observation = _observation(client, number)
            answer = client.infer(observation)
            start = time.perf_counter()
            bare.observe({key: value[None] for key, value in observation.items()})
            observed.append(1e3 * (time.perf_counter() - start))
            actions = bare.predict()[0]
            here.append(1e3 * (time.perf_counter() - start))
            bare.source.ahead([bare.environments[0].stream])  # as its own loop and the server do
            echoed.append(1e3 * echo(bytes(answer["actions"].nbytes)))
            there.append(answer["round_trip_ms"])
            added.append(answer["round_trip_ms"] - answer["server_timing"]["draw_ms"])
            equal &= bool(np.allclose(actions, answer["actions"], atol=1e-4))
    return {
        "bare_ms": _percentiles(here),
        "bare_without_draw_ms": _percentiles(observed),
        "round_trip_ms": _percentiles(there),
        "round_trip_without_draw_ms": _percentiles(added),
        "echo_ms": _percentiles(echoed),
        "more_at_p50_ms": float(np.median(there) - np.median(here)),
        "more_ms": _percentiles(np.subtract(there, here).tolist()),
        "same_actions": equal,
    }


def at_once(address: str, clients: int, chunks: int) -> Json:
    """So many clients, each asking for the next chunk when it has one."""
    trips: list[Json] = []

    def ask(seed: int) -> None:
        with Client(f"{address}/?seed={seed}", timeout_s=120) as client:
            for number in range(chunks):
                trips.append(client.infer(_observation(client, number)))

    seconds = _all_at_once([functools.partial(ask, seed) for seed in range(clients)])
    timings = [trip["server_timing"] for trip in trips]
    return {
        "clients": clients,
        "chunks": len(trips),
        "chunks_per_s": len(trips) / seconds,
        "round_trip_ms": _percentiles([trip["round_trip_ms"] for trip in trips]),
        "queue_ms": _percentiles([timing["queue_ms"] for timing in timings]),
        "draw_ms": _percentiles([timing["draw_ms"] for timing in timings]),
        "network_ms": _percentiles(
            [trip["round_trip_ms"] - trip["server_timing"]["total_ms"] for trip in trips]
        ),
        "batch_mean": float(np.mean([timing["batch"] for timing in timings])),
    }


def _observation(client: Client, number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    shapes, pictures = client.metadata["observations"], client.metadata["pictures"]
    texts = dict.fromkeys(client.metadata["texts"], "pick it up")
    return texts | {
        key: rng.integers(0, 255, shape, np.uint8)
        if key in pictures
        else rng.normal(0, 0.1, shape).astype(np.float32)
        for key, shape in shapes.items()
        if key not in texts
    }


def _percentiles(values: Sequence[float]) -> Json:
    return {f"p{p}": round(float(np.percentile(values, p)), 4) for p in (50, 95, 99)}


def _all_at_once(work: Sequence[Callable[[], None]]) -> float:
    """Seconds that it takes all; the first error that one raised is raised here."""
    errors: list[BaseException] = []

    def tried(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=tried, args=(each,)) for each in work]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - start


# ---- soaking ------------------------------------------------------------------------------------

_EPISODE, _EPISODES = 200, 5


class _Soak:
    """Clients that act until a time has come, and what they met."""

    def __init__(self, address: str, clients: int, rate_hz: float, seconds: float) -> None:
        self._address, self._period = address, 1 / rate_hz
        self._start = time.monotonic()
        self.until = self._start + seconds
        self.steps, self.late = [0] * clients, [0] * clients
        self.trips: list[float] = []
        self.failures: list[str] = []

    def act(self, row: int) -> None:
        """One client's part. A failure is told, and the rest goes on."""
        turn = 0
        while time.monotonic() < self.until:
            try:
                self._connected(row, turn)
            except AsdPolicyError as error:
                after = time.monotonic() - self._start
                self.failures.append(f"client {row} after {after:.0f} s: {error}")
                time.sleep(1)
            turn += 1

    def _connected(self, row: int, turn: int) -> None:
        with Client(self._address, timeout_s=120) as client:
            policy = RemotePolicy(client)
            for episode in range(_EPISODES):
                policy.reset(1000 * row + _EPISODES * turn + episode)
                self._episode(client, policy, row)

    def _episode(self, client: Client, policy: RemotePolicy, row: int) -> None:
        due = time.monotonic()
        for step in range(_EPISODE):
            if time.monotonic() > self.until:
                return
            policy.act(_observation(client, step))
            if policy.last_chunks[0] is not None:
                self.trips.append(policy.source.last_timing["total"])
            due += self._period
            self.steps[row] += 1
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            else:
                self.late[row] += 1
                due = time.monotonic()


def soak(pid: int, address: str, clients: int, rate_hz: float, seconds: float) -> Json:
    """The server's memory while clients act, each sample after a fiftieth of the time."""
    made, samples = _Soak(address, clients, rate_hz, seconds), list[float]()

    def watch() -> None:
        while time.monotonic() < made.until:
            time.sleep(min(seconds / 50, max(0.0, made.until - time.monotonic())))
            samples.append(memory_mb(pid))

    _all_at_once([*(functools.partial(made.act, row) for row in range(clients)), watch])
    first = samples[len(samples) // 5]  # what is allocated once is there
    with Client(address) as client:
        health = client.health()
    return {
        "seconds": seconds,
        "clients": clients,
        "rate_hz": rate_hz,
        "steps": sum(made.steps),
        "late_steps": sum(made.late),
        "failures": made.failures,
        "round_trip_ms": _percentiles(made.trips),
        "memory_mb": [round(sample, 2) for sample in samples],
        "growth_mb": round(samples[-1] - first, 2),
        "growth_mb_per_hour": round((samples[-1] - first) / (0.8 * seconds) * 3600, 2),
        "health": {k: v for k, v in health.items() if k not in ("server_timing", "round_trip_ms")},
    }


def _check(out: Path | None) -> None:
    """Refuse at once what would be lost after an hour."""
    if out is not None:
        check_writable(out)


def _keep(found: Json, out: Path | None) -> None:
    text = json.dumps(found, indent=1) + "\n"
    if out is None:
        print(text, end="")
    else:
        with replacing(out) as file:
            file.write(text.encode())


if __name__ == "__main__":
    room_for_help()
    try:
        tyro.extras.subcommand_cli_from_dict({"roundtrip": main_roundtrip, "soak": main_soak})
    except AsdPolicyError as error:
        sys.exit(f"error: {error}")
