"""Two local processes share the network's rows: the same samples as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import Schedule
from asd_policy.engine import make_engine
from asd_policy.errors import EngineError

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")

# What each rank runs. A network that counts its rows, prepared (UNet) and plain (a function).
RANK = """
import sys
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from asd_policy import Calibration, SamplerConfig, Schedule
from asd_policy import DiffusionPolicy
from asd_policy.checkpoints import shipped
from asd_policy.engine import make_engine
from asd_policy.networks.prepare import prepare
from asd_policy.networks.unet1d import ConditionalUnet1D
from reference.chains import draw
from asd_policy.samplers.result import draw_noise, streams

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
schedule, shape = Schedule.ddpm(20), (8, 2)
torch.manual_seed(0)
unet = ConditionalUnet1D(2, 3, 8, (8, 16), n_groups=4).eval().requires_grad_(False)
rows = []

def plain(x, timesteps, cond):
    rows.append(len(x))
    return unet(x, timesteps, cond)

for network in (prepare(unet, schedule.timesteps), plain):
    engine = make_engine("distributed", network, schedule, shape)
    if rank:
        engine.serve()
        continue
    alone = make_engine("eager", network, schedule, shape)
    for name, batch in (("asd", 3), ("asd", 1), ("ddpm", 3)):
        cond = torch.randn(batch, 3, generator=torch.Generator().manual_seed(batch))
        noise = draw_noise(streams(torch.Generator().manual_seed(1), batch), 20, engine.like)
        config = SamplerConfig(name, window=6)
        calibrations = Calibration(), Calibration()
        x, stats = draw(config, engine, noise, cond, calibrations[0])
        rows.clear()
        expected, costs = draw(config, alone, noise, cond, calibrations[1])
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
        assert torch.equal(stats.calls, costs.calls)
        assert torch.equal(stats.evaluations, costs.evaluations)
    rows.clear()
    engine.close()
# The window of "auto" is found when all ranks make their policy: rank 0 leads.
policy = DiffusionPolicy.load(shipped("lift"), engine="distributed")
if rank:
    policy.engine.serve()
else:
    assert policy.calibration.costs.rows[-1] >= 64
    policy.reset(0)
    policy.act({key: [0.1] * dim for key, dim in policy.observation_keys.items()})
    policy.engine.close()
print("rank", rank, "evaluated", sum(rows), "rows")
dist.destroy_process_group()
"""


def run_ranks(tmp_path: Path, script: str, count: int = 2) -> list[tuple[int, str]]:
    """(status, output) of every rank; they get their rank, a file to meet at, and tests/."""
    path, store = tmp_path / "rank.py", tmp_path / "store"
    path.write_text(script, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    folder = str(Path(__file__).resolve().parents[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path), str(rank), str(store), folder],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, RANK)
    assert [status for status, _ in found] == [0, 0], found
    served = int(found[1][1].split("evaluated ")[1].split()[0])
    assert served > 20, "the second rank did a share of the plain network's rows"


# Every rank makes the same calls. Networks by element, so that rows do not depend on their batch.
EVERY_RANK = """
import sys
import torch, torch.distributed as dist
import asd_policy.integrations.diffusers as pictures
from asd_policy import Schedule, calibrate, sample
from asd_policy.engine import make_engine
from asd_policy.engine.distributed import dismiss, follow
from asd_policy.errors import EngineError, NonFiniteError

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
schedule, rows = Schedule.ddpm(20), []

class Network(torch.nn.Module):
    def __init__(self, weight=0.5, failing=()):
        super().__init__()
        self.weight, self.failing = torch.nn.Parameter(torch.tensor(weight)), failing

    def forward(self, x, timesteps, cond):
        rows.append(len(x))
        if rank in self.failing:
            raise MemoryError("no room for these rows")
        return torch.tanh(self.weight * x + timesteps[:, None] / 20 + cond[:, :1])

def refused(message, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except EngineError as error:
        assert message in str(error), (rank, str(error))
    else:
        raise AssertionError((rank, message))

cond = torch.tensor([[0], [3], [5]])  # whole numbers stay whole
options = {"schedule": schedule, "shape": (3, 4), "cond": cond}
network = Network()
for sampler in ("asd", "ddpm", "asd-rejoin", "paradigms"):
    alone = sample(network, sampler=sampler, seed=1, **options)
    rows.clear()
    found = sample(network, sampler=sampler, seed=1, engine="distributed", **options)
    assert torch.equal(found.sample, alone.sample), (rank, sampler)
    assert torch.equal(found.stats.calls, alone.stats.calls)
    assert sum(rows) < 0.8 * int(alone.stats.evaluations.sum()), "each rank did a share"
class InPlace(Network):
    def forward(self, x, timesteps, cond):
        return x.mul_(0.5)

one = options | {"shape": (1, 4), "cond": cond[:1], "window": 4}  # too few rows to share
for name in ("asd", "ddpm"):
    there = sample(InPlace(), sampler=name, seed=1, engine="distributed", **one)
    assert torch.equal(there.sample, sample(InPlace(), sampler=name, seed=1, **one).sample)
again = sample(network, sampler=sampler, seed=1, engine=found.engine, **options)
assert torch.equal(again.sample, alone.sample)
known = calibrate(network, chunks=1, window=4, seed=0, engine="distributed", **options)
assert known.chunks == 1 and known.costs is not None

class DDPMScheduler:  # as diffusers' to whoever reads its settings
    config = {"num_train_timesteps": 20, "beta_end": 0.3}

def drawn(engine):
    generator = torch.Generator().manual_seed(2)
    given = network, DDPMScheduler(), (3, 4), cond
    return pictures.draw(*given, generator=generator, engine=engine, window=6, rows_at_once=5)

(x, stats), (expected, costs) = drawn("distributed"), drawn("eager")
assert torch.equal(x, expected) and torch.equal(stats.calls, costs.calls)

# A rank that has something else, or fails; the group is as good as before each time.
other = Network(0.5 if rank else 0.25)
refused("rank 1 and rank 0 differ in their weights; every",
        sample, other, engine="distributed", **options)
refused("rank 1 and rank 0 differ in their shape ((5,) and (4,)); every",
        make_engine, "distributed", network, schedule, (4 + rank,))
refused("rank 1 and rank 0 differ in their schedule; every", make_engine, "distributed", network,
        Schedule.ddpm(20 + rank), (4,))
message = "MemoryError: no room for these rows"
refused("rank 1 failed at its" if rank == 0 else "rank 0 ended with: EngineError: rank 1 failed",
        sample, Network(failing=(1,)), engine="distributed", **options)
try:
    sample(Network(failing=(0,)), engine="distributed", **options)
except MemoryError:
    assert rank == 0
except EngineError as error:
    assert rank == 1 and message in str(error)

# Ranks that only serve are given what rank 0 makes.
if rank:
    rows.clear()
    follow()
    assert rows, "rank 0's network came over"
else:
    local = lambda x, timesteps, cond: x
    refused("the other ranks cannot be sent <lambda>", make_engine, "distributed", local,
            schedule, (4,))
    found = sample(network, seed=1, engine="distributed", **options)
    assert torch.equal(found.sample, sample(network, seed=1, **options).sample)
    dismiss()
assert torch.equal(sample(network, seed=1, engine="distributed", **options).sample,
                   sample(network, seed=1, **options).sample)
print("all is well")
if rank:
    import os
    os._exit(9)
engine = make_engine("eager", network, schedule, (4,))
refused("a rank of the process group has ended", sample, network, engine="distributed", **options)
print("a dead rank was noticed")
# Left as programs should: PyTorch's own threads would meet an interpreter that is ending.
dist.destroy_process_group()
"""


def test_every_rank_makes_the_call_and_has_the_result(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, EVERY_RANK)
    assert [status for status, _ in found] == [0, 9], found[0][1][-2000:]
    assert "a dead rank was noticed" in found[0][1]
    assert [text.count("asd-policy: 3 samples") for _, text in found] == [2, 1], "one said it"


# PyTorch 2.4 waited for itself: a thread of its own, whose tensor had no other owner, wanted the
# interpreter's lock. After exchanges like these it did so within the first twelve departures, eight
# times of eight.
LEAVING = """
import sys
import torch, torch.distributed as dist
from asd_policy.engine import ranks

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), dist.FileStore(sys.argv[2], 2)
for time in range(100):
    store = dist.PrefixStore(str(time), meeting)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    if time % 7 == 0:
        assert ranks.everyones(rank + time) == [time, 1 + time]
    with ranks.travelling():
        mine, all_of_it = torch.zeros(2, 3), torch.arange(12.0).view(4, 3)
        ranks.scatter(mine, None if rank else ranks.share(all_of_it, 2))
        assert torch.equal(mine, all_of_it[2 * rank : 2 * rank + 2])
        parts = None if rank else [torch.empty(2, 3) for _ in range(2)]
        ranks.gather(mine.clone(), parts)
        assert rank or torch.equal(torch.cat(parts), all_of_it)
    if rank:
        assert ranks.hear()[0] == ranks.END
    else:
        ranks.say(ranks.END)
    dist.destroy_process_group()
assert len(ranks._travelled) < 20, "what PyTorch has let go of is let go"
"""


def test_leaving_right_after_an_exchange_ends(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, LEAVING)
    assert [status for status, _ in found] == [0, 0], found


def torchrun(*words: str, ranks: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """`torchrun -m asd_policy …` on this machine."""
    start = sys.executable, "-m", "torch.distributed.run", "--standalone"
    return subprocess.run(
        [*start, "--nproc-per-node", str(ranks), "-m", "asd_policy", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        text=True, capture_output=True, timeout=240,
    )  # fmt: skip


def test_commands_run_on_the_ranks_of_torchrun(tmp_path: Path) -> None:
    """`verify`, whose chunks are kept: the same as in one process, and said once."""
    pytest.importorskip("tyro")
    words = "verify", "--oracle", "--chunks", "40", "--observations", "4", "--batch", "8"
    words += "--steps", "20", "--threads", "1"
    kept = {}
    for engine in ("eager", "distributed"):
        out = tmp_path / engine
        given = *words, "--engine", engine, "--out", str(out)
        done = torchrun(*given, ranks=1 + (engine == "distributed"))
        result = json.loads((out / "verify.json").read_text())
        assert result["resolved"]["engine"] == engine
        assert done.stdout.count(f"{out}") == 1, "only rank 0 prints"
        kept[engine] = [np.load(path)["chunks"] for path in sorted(out.rglob("draws/*/*.npz"))]
    assert len(kept["eager"]) == len(kept["distributed"]) > 4
    for one, split in zip(kept["eager"], kept["distributed"], strict=True):
        np.testing.assert_allclose(split, one, atol=1e-5)


def test_ranks_without_work_are_refused_once() -> None:
    done = torchrun("verify", "--oracle")
    assert done.returncode != 0
    assert done.stderr.count("error: torchrun has started 2 ranks") == 1
    assert "give it --engine distributed, or start `asd-policy verify` without" in done.stderr


def test_only_rank_0_refuses() -> None:
    """torchrun ends the others once a rank has failed: they must not fail before it has spoken."""
    for rank, status in (0, 2), (1, 0):
        of_torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-m", "asd_policy", "verify", "--oracle"],
            env={**os.environ, **of_torchrun}, text=True, capture_output=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, bool(done.stderr)) == (status, rank == 0), done.stderr


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="needs a process group: start the ranks with torchrun"):
        make_engine("distributed", lambda x, t, c: x, Schedule.ddpm(5), (2,))
