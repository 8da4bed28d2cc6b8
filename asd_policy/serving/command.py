"""`asd-policy serve`."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from asd_policy.checkpoints import check_steps
from asd_policy.device import resolve_device
from asd_policy.errors import InputError
from asd_policy.policy.warmup import warm_up
from asd_policy.progress import Stage
from asd_policy.samplers.names import sampler_form
from asd_policy.serving.token import one_word

_M_ARENA_MAX = -8  # of malloc.h


def main_serve(
    checkpoint: Annotated[Path, arg(metavar="NAME|DIR|FILE")] = Path("lift"),
    host: str = "127.0.0.1",
    port: int = 8000,
    sampler: Annotated[str, arg(metavar="NAME")] = "asd",
    window: Annotated[str, arg(metavar="auto|INT")] = "auto",
    steps: Annotated[int | None, arg(metavar="INT")] = None,
    robots: int = 1,
    wait_ms: float = 0.0,
    token_file: Annotated[Path | None, arg(metavar="FILE")] = None,
    device: str = "auto",
    engine: Annotated[str, arg(metavar="{auto,eager,cuda_graph,openvino}")] = "auto",
    precision: Annotated[str, arg(metavar="{fp32,tf32,bf16}")] = "fp32",
    compile: bool = False,
    threads: Annotated[int | None, arg(metavar="INT")] = None,
    max_clients: int = 64,
    max_message_mb: float = 16.0,
    max_rate: float = 1000.0,
    idle_s: float = 600.0,
) -> None:
    """Serve a policy to robots elsewhere: openpi's protocol, a WebSocket with msgpack.

    SIGTERM or Ctrl-C ends it: what was asked is answered first. `asd_policy.serving.Client` and
    openpi's own client speak with it; `curl http://HOST:PORT/healthz` says whether it is well.

    Args:
        checkpoint: A shipped policy (lift, can …), a folder, robomimic's .pth,
            diffusion_policy's .ckpt, or a folder of LeRobot's diffusion.
        host: The address to listen at; others than this machine reach 0.0.0.0.
        port: The port; 0 is any that is free.
        sampler: How chunks are drawn, by its name in `asd-policy eval`.
        window: Steps that asd and paradigms put into one network call.
        steps: Denoising steps; None is as trained.
        robots: How many are expected at once: auto chooses the window for so many, and a GPU's
            graphs, or OpenVINO's calls, are made for so many beforehand.
        wait_ms: How long an observation waits for those of others, to be drawn in one batch.
        token_file: A file that holds one word of your choosing, the token that clients must show:
            Client(…, token=…), or ASD_POLICY_TOKEN in their environment.
        device: Where the policy runs: auto, cpu, cuda, cuda:1.
        engine: What runs the sampler; auto is cuda_graph on a GPU, and openvino on a CPU, where it
            is installed and faster.
        precision: Number format of the network (tf32 on a GPU only).
        compile: Compile the network at the first chunks.
        threads: CPU threads of the policy; None chooses by the network's size.
        max_clients: How many connections there may be.
        max_message_mb: How large a message may be, in MiB.
        max_rate: How many messages a second one client may send.
        idle_s: After how many seconds without a message a connection is closed.
    """
    from asd_policy.serving.listening import listen
    from asd_policy.serving.server import Limits, Server

    _share_memory()
    if not math.isfinite(max_message_mb):
        raise InputError(f"--max-message-mb must be positive, got {max_message_mb:g}")
    limits = Limits(int(max_message_mb * 2**20), max_rate, idle_s, clients=max_clients)
    _check(limits, port, robots, wait_ms)
    for each in listen(host, port):  # what is taken is said before a minute of loading
        each.close()
    token = None if token_file is None else _token(token_file)
    place: dict[str, Any] = {"device": resolve_device(device), "engine": engine}
    place |= {"precision": precision, "compile": compile, "threads": threads}
    policy = _open(checkpoint, place, sampler, window, steps)
    with Stage("drawing the first chunks"):
        warm_up(policy, robots)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # what others' machines send
    server = Server(
        policy, host, port, token=token, robots=robots, wait_s=1e-3 * wait_ms, limits=limits,
        metadata={
            "policy": str(checkpoint), "sampler": sampler, "precision": precision,
            "compile": compile,
        },
    )  # fmt: skip
    _run(server, f"{checkpoint}, {sampler}", token is not None)


def _run(server: Any, what: str, has_token: bool) -> None:
    server.start()
    if not has_token and not _is_loopback(server.host):
        _say(f"warning: whoever reaches {server.host} can use it; --token-file asks for a token")
    host = f"[{server.host}]" if ":" in server.host else server.host
    place = f"ws://{host}:{server.port}"
    try:
        server.run(lambda: print(f"serving {what} at {place}", flush=True))
    except KeyboardInterrupt:
        if server.at_work:
            _say("interrupted")
        _end(server, 128 + signal.SIGINT)
        raise
    health = server.health()
    batches = "1 batch" if health["batches"] == 1 else f"{health['batches']} batches"
    _say(f"ended; chunks drawn: {health['chunks']}, in {batches}")
    _end(server, 0)


def _end(server: Any, status: int) -> None:
    """End at once where a thread still draws: it would meet an interpreter that is ending."""
    if server.at_work:
        sys.stdout.flush()
        os._exit(status)


def _share_memory() -> None:
    """glibc has an arena for each thread, which keeps what a draw took, a hundred megabytes after
    an hour of clients that come and go. One thread draws at a time: two arenas do."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another system's library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _open(
    checkpoint: Path, place: dict[str, Any], sampler: str, window: str, steps: int | None
) -> Any:
    check_steps(sampler, steps or sampler_form(sampler).get("steps"), checkpoint)
    with Stage("loading PyTorch"):
        from asd_policy.integrations.loaders import open_policies
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    if window != "auto":
        options["window"] = int(window) if window.isdecimal() else window
    with Stage("loading the policy (a network that is new here is timed)"):
        return open_policies(checkpoint, place)({"sampler": sampler, **options})


def _check(limits: Any, port: int, robots: int, wait_ms: float) -> None:
    wanted = {
        "--port must be from 0 to 65535": (port, 0 <= port < 2**16),
        "--robots must be 1 or more": (robots, robots >= 1),
        "--wait-ms must be from 0 to 1000": (wait_ms, 0 <= wait_ms <= 1000),
        "--max-clients must be 1 or more": (limits.clients, limits.clients >= 1),
        "--max-message-mb must be positive": (limits.message_bytes, limits.message_bytes > 0),
        "--max-rate must be positive": (limits.rate_hz, limits.rate_hz > 0),
        "--idle-s must be positive": (limits.idle_s, limits.idle_s > 0),
    }
    for text, (value, good) in wanted.items():
        if not good:
            raise InputError(f"{text}, got {value:g}")


def _token(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"--token-file {path} cannot be read: {error}") from error
    return one_word(text, f"--token-file {path}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
