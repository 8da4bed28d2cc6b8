"""What `--ray` is made of, as far as it needs no cluster; and that nothing else needs Ray."""

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys

import pytest
from eval_schemas import check
from eval_standin import LineEnv, PushPolicy, open_here

from asd_policy import cli
from asd_policy.errors import AsdPolicyError
from asd_policy.eval import rollout
from asd_policy.eval.options import EvalOptions, check_options, command_line
from asd_policy.eval.slots import LocalSlot, WorkerDied

OF_THE_CLUSTER = "asd_policy.eval.cluster"


def test_ray_is_imported_only_when_it_is_asked_for():
    program = (
        "import sys, asd_policy.cli, asd_policy.eval.command, asd_policy.eval.evaluator\n"
        f"print([m for m in sys.modules if m == 'ray' or m.startswith('{OF_THE_CLUSTER}')])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_without_ray_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.startswith(OF_THE_CLUSTER)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["eval", "--ray", "--out", str(tmp_path / "run")]) == 2
    assert "needs ray, which is not installed: pip install 'asd-policy[ray]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ray", "said"), [((), "--ray"), (("auto",), "--ray auto"), (("a:1",), "--ray a:1")]
)
def test_the_command_that_is_shown_asks_for_the_same(ray, said):
    options = EvalOptions(ray=ray)
    check_options(options)
    assert command_line(options) == f"asd-policy eval {said}"


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match="--record needs the policy in this process"):
        check_options(EvalOptions(ray=(), record=True))
    with pytest.raises(ValueError, match="takes one address or none; got a:1 b:2"):
        check_options(EvalOptions(ray=("a:1", "b:2")))
    with pytest.raises(ValueError, match=r"must be auto, cpu or cuda with --ray.*'cuda:1'"):
        check_options(EvalOptions(ray=(), device="cuda:1"))


# --- the rollout, where places are lost ----------------------------------------------------------


class Place(LocalSlot):
    """Dies at the receives of `deaths`, counted over its life; then away for so many looks."""

    def __init__(self, deaths=(), away=0, absent=0):
        super().__init__(functools.partial(LineEnv, 40, 0.0))
        self.deaths, self.away, self.absent = deaths, away, absent
        self.received = self.starts_while_away = 0

    def ready(self):
        self.absent -= 1
        return self.absent < 0

    def start(self, seed, film):
        self.starts_while_away += self.absent >= 0
        super().start(seed, film)

    def receive(self):
        self.received += 1
        if self.received in self.deaths:
            raise WorkerDied("the node was lost")
        return super().receive()

    def restart(self):
        self.absent = self.away


def outcomes(slots, seeds=range(6), policy=None):
    policies = {"asd": policy or PushPolicy("asd")}
    episodes = list(rollout.roll_out(policies, slots, (("asd", seed) for seed in seeds)))
    assert len({e.seed for e in episodes}) == len(episodes) == len(seeds)
    return {e.seed: (e.success, e.steps, e.return_, e.restarts) for e in episodes}


def test_an_episode_whose_place_is_lost_goes_on_in_another():
    alone = outcomes([Place()])
    slots = [Place(deaths=(3,), away=10**6), Place()]
    both = outcomes(slots)
    assert {seed: o[:3] for seed, o in both.items()} == {s: o[:3] for s, o in alone.items()}
    assert sorted(o[3] for o in both.values()) == [0, 0, 0, 0, 0, 1]
    assert slots[0].received == 3, "it never came back"


@pytest.mark.parametrize("death", [1, 4])
def test_a_place_that_comes_back_is_used_again(death):
    slots = [Place(deaths=(death,), away=4), Place(absent=3)]
    both = outcomes(slots, seeds=range(20))
    assert {s: o[:3] for s, o in both.items()} == {
        s: o[:3] for s, o in outcomes([Place()], seeds=range(20)).items()
    }
    assert sum(o[3] for o in both.values()) == 1
    assert all(slot.received > 20 for slot in slots)
    assert [slot.starts_while_away for slot in slots] == [0, 0]


def test_no_place_at_all_is_an_error_in_time(monkeypatch):
    monkeypatch.setattr(rollout, "_PATIENCE_S", 0.2)
    with pytest.raises(AsdPolicyError, match="no environment has had a place to run"):
        outcomes([Place(absent=10**6)])


def test_every_place_is_lost_and_one_comes_back():
    slots = [Place(deaths=(3,), away=5), Place(deaths=(2,), away=10**6)]
    assert sum(o[3] for o in outcomes(slots).values()) == 2


class Slow(Place):
    """Its reset is not there until it has been asked for four times."""

    def start(self, seed, film):
        super().start(seed, film)
        self.absent = 4


def test_those_that_act_do_not_wait_for_a_reset():
    policy = PushPolicy("asd")
    both = outcomes([Slow(), Place()], policy=policy)
    assert {s: o[:3] for s, o in both.items()} == {s: o[:3] for s, o in outcomes([Place()]).items()}
    assert policy.batches[0] == 1, "the second began to act alone"
    assert 2 in policy.batches


# --- what is sent --------------------------------------------------------------------------------


def host():
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.cluster import host

    return host


def test_jobs_end_for_now_and_go_on():
    jobs = host()._Jobs()
    jobs.add([("asd", 1), ("asd", 2)])
    assert list(jobs) == [("asd", 1), ("asd", 2)]
    jobs.add([("asd", 3)])
    assert list(jobs) == [("asd", 3)]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_parcel_is_unpacked_as_it_was(tmp_path, is_folder):
    source, there = tmp_path / "policy", tmp_path / "there"
    there.mkdir()
    if is_folder:
        source.mkdir()
        (source / "card.json").write_bytes(b"card")
        (source / "notes.txt").write_bytes(b"not sent")
    else:
        source.write_bytes(b"weights")
    unpacked = host().Parcel.of(source).unpack(there)
    assert unpacked == there / "policy"
    if is_folder:
        assert [path.name for path in unpacked.iterdir()] == ["card.json"]
    else:
        assert unpacked.read_bytes() == b"weights"


def test_throughput_is_kept(monkeypatch, tmp_path):
    """With places in this process: all but the cluster is as in test_ray.py."""
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.cluster import throughput

    def prepare_here(options, prepare):
        return prepare(options, open_slots=open_here)

    size = {"version": "2.9", "nodes": 1, "cpus": 4, "gpus": 0}
    monkeypatch.setattr(throughput, "RaySlot", lambda make, environ: LocalSlot(make))
    monkeypatch.setattr(throughput, "prepare_on_ray", prepare_here)
    monkeypatch.setattr(throughput.connect, "connected", lambda _: contextlib.nullcontext(False))
    monkeypatch.setattr(throughput.connect, "cluster_size", lambda: size)
    out = tmp_path / "out"
    throughput.main(throughput.Options(envs=(1, 2), step_ms=0.1, chunk_ms=0.1, chunks=2, out=out))
    wrong = [
        ("machine/ray", KeyError),
        ("machine/ray/policies_on", []),
        ("machine/cpu", None),
        ("settings/envs", [0]),
        ("settings/more", 1),
        ("costs/message_s", "1"),
        ("costs/answer_bytes", KeyError),
        ("runs", []),
        ("runs/0/episodes_per_s", None),
        ("on_paper/0/of_the_cores", 1.5),
        ("on_paper/0/more", 1),
    ]
    check("throughput", json.loads((out / "throughput.json").read_text()), wrong)
    assert (out / "throughput.svg").exists()


def test_throughput_needs_an_episode_that_counts(tmp_path):
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.cluster import throughput

    with pytest.raises(ValueError, match=r"--episodes must be 2 or more.*; got 1"):
        throughput.main(throughput.Options(episodes=1, out=tmp_path / "out"))


def test_the_model_of_throughput_has_its_limits():
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.cluster.throughput import ACTIONS, Costs, on_paper, steps_per_s

    costs = Costs(4e-4, 1e-3, 2e-5, 1e-3, 1, 1)
    assert steps_per_s(costs, 1, 1e-2, 0.0) < 100.0
    free = dataclasses.replace(costs, message_s=0.0, step_s=0.0)
    assert steps_per_s(free, 50, 1e-2, 0.0) == pytest.approx(5000.0)
    at_most = ACTIONS / (costs.message_s + ACTIONS * costs.step_s)
    assert 0.99 * at_most < steps_per_s(costs, 10**6, 1e-2, 0.03) < at_most
    paper = on_paper(costs, "lift", 0.03, gpus=8, cores=1000)
    assert paper["num_envs"] == 124
    assert 0 < paper["of_the_cores"] < 1
    assert paper["steps_per_s"] < paper["steps_per_s_at_most"]
