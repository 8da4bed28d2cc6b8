"""What a network costs on this machine: measured once, and kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.ambient import asked_for, own_precision
from asd_policy.drafts import Form
from asd_policy.engine.eager import Engine
from asd_policy.errors import NonFiniteError
from asd_policy.files import replacing
from asd_policy.networks import openvino_layers
from asd_policy.samplers.acceptance import DEFAULT_WINDOW, Acceptance
from asd_policy.samplers.costs import WIDEST, Costs
from asd_policy.samplers.result import draw_noise
from asd_policy.samplers.table import Plan

CACHE = "ASD_POLICY_CACHE"  # a folder in place of the user's
LADDER = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, WIDEST, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
PASSES, LEAST_PASSES, ENOUGH_S = 8, 3, 1.0  # over the ladder, and seconds after which fewer do
SLOW_CALL_S = 0.25  # beyond, larger batches are extrapolated
FORM = 2  # raise it where networks or rounds are computed in another way than before
PROBES = 3  # throw-away chunks, for the cost of a round apart from its network call

_in_process: dict[str, Costs] = {}


def network_costs(
    engine: Engine, cond: Tensor | None, compiled: bool = False, again: bool = False
) -> Costs:
    """Costs of an engine's network: those kept for this machine, or measured now and kept.

    They are kept by processor or GPU, threads, engine, precision, versions, and the network's
    code, shapes and settings; of a function, or a module without weights, which have none that can
    be compared, they are not kept.

    Args:
        cond: (1, …), one chain's condition, or None. Its values do not matter.
        compiled: whether the network goes through ``torch.compile``. again: measure in any case.
    """
    key = _key(engine, cond, compiled)
    name = None if key is None else hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    if name is None:
        return measure_costs(engine, cond)
    known = None if again else _in_process.get(name) or _read(name)
    if known is None:
        known = measure_costs(engine, cond)
        _write(name, key, known)
    _in_process[name] = known
    return known


def measure_costs(engine: Engine, cond: Tensor | None) -> Costs:
    """Time the network at rising numbers of rows, in turns: an interruption hits one turn of one.

    Of every number of rows the least time counts, since whatever else the machine does only ever
    adds; and no batch costs more than a larger one.
    """
    start = time.perf_counter()
    timers, seconds = [], []
    for rows in LADDER:
        timer = engine.timer(rows, cond)
        timer()  # the first call also allocates
        timers.append(timer)
        seconds.append(_least(timer))
        if _goes_on_alike(rows, seconds):
            break
    for done in range(PASSES):
        if done >= LEAST_PASSES and time.perf_counter() - start > ENOUGH_S:
            break
        # Twice, since rounds follow rounds: what the first call finds in the caches is another's.
        seconds = [min(s, timer(), timer()) for s, timer in zip(seconds, timers, strict=True)]
    rising = np.minimum.accumulate(seconds[::-1])[::-1]
    overhead = _overhead(engine, cond)
    whole = engine.name == "cuda_graph"
    if whole or engine.name == "openvino":
        engine.close()  # what only the measurement captured or compiled
    return Costs(LADDER[: len(timers)], tuple(rising.tolist()), overhead, whole)


def _least(timer: Callable[[], float]) -> float:
    """Seconds of one call; of some where it seems slow, for it may have been interrupted."""
    seconds = timer()
    for _ in range(LEAST_PASSES):
        if seconds <= SLOW_CALL_S:
            break
        seconds = min(seconds, timer())
    return seconds


def _goes_on_alike(rows: int, seconds: list[float]) -> bool:
    """Whether time is already in proportion to rows, or a call too slow to go on."""
    if seconds[-1] > SLOW_CALL_S:
        return True
    before = LADDER[len(seconds) - 2]
    return rows >= WIDEST and seconds[-1] / rows > 0.9 * seconds[-2] / before


def _overhead(engine: Engine, cond: Tensor | None) -> float:
    """Seconds of a round apart from its network call, the least of some chunks."""
    steps, found = engine.schedule.num_steps, []
    nothing = torch.zeros(steps, dtype=torch.float64, device="cpu")
    plan = Plan(min(DEFAULT_WINDOW, steps), nothing, False, Acceptance.unknown(steps))
    for _ in range(PROBES):
        generator = torch.Generator(engine.like.device).manual_seed(0)
        noise = draw_noise([generator], steps, engine.like)
        try:
            _, stats = engine.asd(noise, cond, Form("secant"), plan)
        except NonFiniteError:  # what it says is judged when it is sampled, not here
            return 0.0
        rest = sum(stats.seconds.values()) - stats.seconds["network"]
        found.append(rest / max(1, int(stats.calls.max())))
    return min(found)


# ---- the cache ---------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where costs are kept: $ASD_POLICY_CACHE, or asd-policy in the user's cache folder."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(home) if home else Path.home() / ".cache") / "asd-policy"


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _key(engine: Engine, cond: Tensor | None, compiled: bool) -> dict[str, Any] | None:
    """All that costs depend on; None for a network that cannot be recognised again."""
    network = getattr(engine.source, "unet", engine.source)
    if not isinstance(network, nn.Module):
        return None
    device = engine.like.device
    on_gpu = device.type == "cuda"
    state = network.state_dict().items()  # quantized layers have other things there, too
    shapes = [[k, list(v.shape), str(v.dtype)] for k, v in state if isinstance(v, Tensor)]
    if not shapes:
        return None
    with own_precision():
        surrounding = repr(asked_for())
    return {
        "processor": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "threads": None if on_gpu else torch.get_num_threads(),
        "engine": [engine.name, engine.ranks],
        "kernels": engine.kernels,
        "network": type(network).__qualname__,
        "shapes": hashlib.sha256(json.dumps([shapes, _settings(network)]).encode()).hexdigest(),
        "surrounding": surrounding,
        "precision": getattr(network, "precision", str(engine.like.dtype)),
        "compiled": compiled,
        "sample": list(engine.shape),
        "condition": None if cond is None else list(cond.shape),
        "versions": [torch.__version__, _our_version(), FORM, *_engines_version(engine)],
    }


def _settings(network: nn.Module) -> list[Any]:
    """What tells networks of equal shapes apart: the code of the classes of their layers, and
    numbers and words among their attributes. (What begins with _ is a layer's own affair, and may
    be another in every process.)"""
    layers: list[Any] = []
    codes: dict[str, str] = {}
    for name, layer in network.named_modules():
        kind, told = type(layer), {}
        for key, value in vars(layer).items():
            if key != "training" and not key.startswith("_") and _is_plain(value):
                told[key] = value
        layers.append([name, f"{kind.__module__}.{kind.__qualname__}", told])
        if not kind.__module__.startswith("torch."):
            codes.setdefault(kind.__qualname__, _code(kind))  # type: ignore[arg-type]
    return [layers, codes]


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


@functools.lru_cache(maxsize=1024)  # Python parses a class's whole module to find it
def _code(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in, or compiled
        return ""


def _engines_version(engine: Engine) -> list[str | None]:
    return [openvino_layers.version()] if engine.name == "openvino" else []


def _our_version() -> str:
    try:
        return importlib.metadata.version("asd-policy")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _path(name: str) -> Path:
    return cache_folder() / "costs" / f"{name}.json"


def _read(name: str) -> Costs | None:
    """What is kept under this name; a file that is damaged is as good as none."""
    try:
        return Costs.from_dict(json.loads(_path(name).read_text(encoding="utf-8"))["costs"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError):
        return None


def _write(name: str, key: dict[str, Any] | None, costs: Costs) -> None:
    try:
        with replacing(_path(name), f".{os.getpid()}.part") as file:
            file.write(
                json.dumps({"key": key, "costs": costs.to_dict()}, indent=1).encode() + b"\n"
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        warnings.warn(
            f"what the network costs on this machine could not be kept ({error}), so that every "
            f"process measures it anew; {CACHE} names another folder",
            stacklevel=2,
        )
