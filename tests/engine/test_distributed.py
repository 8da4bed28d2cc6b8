"""Two local processes share the network's rows: the same samples as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    script, store = tmp_path / "rank.py", tmp_path / "store"
    script.write_text(RANK, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    folder = str(Path(__file__).resolve().parents[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(store), folder],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    served = int(said[1].split("evaluated ")[1].split()[0])
    assert served > 20, "the second rank did a share of the plain network's rows"


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="needs a process group: start the ranks with torchrun"):
        make_engine("distributed", lambda x, t, c: x, Schedule.ddpm(5), (2,))
