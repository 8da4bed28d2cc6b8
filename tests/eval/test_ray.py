"""`--ray`: the same episodes as without, from environments and policies in actors that may die."""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import signal
import time
import types
from collections import Counter
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")

from eval_ray import add_node, ray_cluster  # noqa: E402
from eval_schemas import check  # noqa: E402
from eval_standin import LineEnv, prepare  # noqa: E402
from eval_workers import Dies, Fails, NotMade, Traced  # noqa: E402

from asd_policy.errors import AsdPolicyError, CheckpointError, NonFiniteError  # noqa: E402
from asd_policy.eval.options import EvalOptions  # noqa: E402
from asd_policy.eval.rollout.cluster import driver  # noqa: E402
from asd_policy.eval.rollout.cluster.driver import prepare_on_ray  # noqa: E402
from asd_policy.eval.studies.evaluate import evaluate  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """One node of 4 CPUs: a policy and three environments. This process joins it."""
    with ray_cluster(4) as cluster:
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster


@pytest.fixture
def options(tmp_path):
    return EvalOptions(
        episodes=5, num_envs=2, samplers=("asd", "ddpm"), out=tmp_path / "run", ray=("auto",)
    )


def run(options, quiet, env_class=LineEnv, patience_s=400.0, **wanted):
    make = functools.partial(prepare, env_class=env_class, workers=True, **wanted)
    there = functools.partial(prepare_on_ray, prepare=make, patience_s=patience_s)
    return evaluate(options, prepare=there, console=quiet)


def test_policies_that_are_ready_together_are_not_waited_for(cluster, monkeypatch):
    """Ray tells one ready answer at a time: it may not be the same one again and again."""
    ready = itertools.count()

    def open_at_once(member):
        prepared = driver.Prepared("sha", 20.0, {}, {}, f"host {next(ready)}")
        member.asked, member.prepared, member.held = ray.put(prepared), None, set()
        member._begun, member._since = False, time.monotonic()
        member.placed = member.asked

    monkeypatch.setattr(driver.Member, "open", open_at_once)
    crew = driver.Crew(types.SimpleNamespace(policies=3), (), 60.0, False)
    start = time.monotonic()
    crew.start()
    assert all(member.prepared for member in crew.members)
    assert time.monotonic() - start < 30, "it had patience with who had answered"


def here(options, quiet, tmp_path):
    """The same run in this process."""
    local = dataclasses.replace(options, num_envs=1, out=tmp_path / "here", ray=None)
    evaluate(local, prepare=prepare, console=quiet)
    return local.out


def episodes(folder: Path) -> dict[tuple[str, int], dict]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({(r["sampler"], r["seed"]) for r in records}) == len(records)
    return {(r["sampler"], r["seed"]): r for r in records}


def outcomes(folder: Path) -> dict[tuple[str, int], tuple]:
    """What the clock and the batch do not decide: exact."""
    return {
        key: (e["success"], e["steps"], e["return"], e["decided_by_step"], e["accepted_by_step"])
        for key, e in episodes(folder).items()
    }


def nothing_is_left_running() -> bool:
    """Whether every CPU of the cluster is free again: no actor holds one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"):
            return True
        time.sleep(0.1)
    return False


def test_the_cluster_and_this_process_give_the_same_episodes(cluster, options, quiet, tmp_path):
    results = run(options, quiet)
    assert outcomes(options.out) == outcomes(here(options, quiet, tmp_path))
    assert len(outcomes(options.out)) == 10
    assert results["complete"]
    env = json.loads((options.out / "env.json").read_text())
    check("env", env)
    assert env["ray"]["version"] == ray.__version__
    assert (env["ray"]["nodes"], env["ray"]["cpus"]) == (1, 4)
    config = json.loads((options.out / "config.json").read_text())
    assert "ray" not in config["settings"], "where a run is done is none of its settings"
    assert " --ray auto " in config["command"]
    assert nothing_is_left_running()


def test_a_run_is_resumed_here_or_there(cluster, options, quiet, tmp_path):
    few = dataclasses.replace(options, episodes=2)
    run(few, quiet)
    more = dataclasses.replace(options, resume=True, ray=None, episodes=3)
    evaluate(more, prepare=prepare, console=quiet)
    results = run(dataclasses.replace(options, resume=True), quiet)
    assert results["complete"]
    assert outcomes(options.out) == outcomes(here(options, quiet, tmp_path))


@pytest.mark.parametrize("at", [0, 3])
def test_a_lost_environment_is_replaced(cluster, options, quiet, tmp_path, at):
    one = dataclasses.replace(options, samplers=("asd",))
    world = functools.partial(Dies, folder=tmp_path, seed=100_001, at=at, times=2)
    results = run(one, quiet, world)
    assert outcomes(one.out) == outcomes(here(one, quiet, tmp_path))
    assert results["restarts"] == 2
    assert {k[1]: e["restarts"] for k, e in episodes(one.out).items() if e["restarts"]} == {
        100_001: 2
    }
    assert len(list(tmp_path.glob("pid-*"))) == 2 + 2


def test_an_episode_that_kills_every_actor_is_given_up(cluster, options, quiet, tmp_path):
    world = functools.partial(Dies, folder=tmp_path, seed=100_001, at=3, times=100)
    with pytest.raises(AsdPolicyError, match=r"seed 100001 of asd was given up: .*exit code -9"):
        run(options, quiet, world)
    assert nothing_is_left_running()


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("non-finite", NonFiniteError, r"^expected finite observations, got nan$"),
        ("key", RuntimeError, r"KeyError\('no such key'\)"),
    ],
)
def test_an_exception_there_is_raised_here(cluster, options, quiet, kind, expected, message):
    with pytest.raises(expected, match=message):
        run(options, quiet, functools.partial(Fails, kind=kind))
    assert (options.out / "results.json").exists(), "what was finished is kept"
    assert nothing_is_left_running()


def test_an_environment_that_cannot_be_made_is_an_error(cluster, options, quiet):
    with pytest.raises(RuntimeError, match="no such mesh"):
        run(options, quiet, NotMade)


def refuses(options, **_):
    raise ValueError("the sampler refuses --steps 3")


def test_what_the_policy_refuses_is_said_here(cluster, options, quiet):
    there = functools.partial(prepare_on_ray, prepare=refuses)
    with pytest.raises(AsdPolicyError, match=r"^the sampler refuses --steps 3$"):
        evaluate(options, prepare=there, console=quiet)
    assert nothing_is_left_running()


def test_films_come_home(cluster, options, quiet):
    pytest.importorskip("imageio")
    run(dataclasses.replace(options, samplers=("asd",), video=1), quiet)
    films = [path.name for path in (options.out / "videos").iterdir()]
    assert films == ["lift_seed100000_asd_success.mp4"]


def prepare_mortal(options, *, folder: Path, **wanted):
    """As `prepare`; leaves the process's id, which the test kills."""
    setup = prepare(options, **wanted)
    (folder / f"policy-{os.getpid()}").touch()
    return setup


def kill_policy(folder: Path, out: Path) -> None:
    """Wait for some episodes, then kill the policy's process."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        lines = out / "episodes.jsonl"
        if lines.exists() and lines.read_bytes().count(b"\n") >= 3:
            (path,) = folder.glob("policy-*")
            os.kill(int(path.name.split("-")[1]), signal.SIGKILL)
            return
        time.sleep(0.05)


def test_a_lost_policy_is_replaced(cluster, options, quiet, tmp_path):
    many = dataclasses.replace(options, episodes=20)
    make = functools.partial(prepare_mortal, folder=tmp_path, step_s=0.01)
    there = functools.partial(prepare_on_ray, prepare=make, patience_s=400.0)
    killer = multiprocessing.get_context("fork").Process(
        target=kill_policy, args=(tmp_path, many.out)
    )
    killer.start()
    try:
        results = evaluate(many, prepare=there, console=quiet)
    finally:
        killer.join()
    assert len(list(tmp_path.glob("policy-*"))) == 2
    assert outcomes(many.out) == outcomes(here(many, quiet, tmp_path))
    restarts = Counter(e["restarts"] for e in episodes(many.out).values())
    assert results["restarts"] == restarts[1], "every episode that was with it was lost once"
    assert 1 <= restarts[1] <= 4


def test_more_environments_than_there_is_room_for(cluster, options, quiet, capsys):
    run(dataclasses.replace(options, num_envs=9), quiet)
    assert "room for 3 of 9 environments for each policy" in capsys.readouterr().err
    assert {e["num_envs"] for e in episodes(options.out).values()} == {3}


def occupied():
    """An actor that has all CPUs of a node."""

    @ray.remote(num_cpus=4)
    class Hog:
        def up(self):
            pass

    hog = Hog.remote()
    ray.get(hog.up.remote())
    return hog


def test_a_cluster_that_is_busy_is_an_error(cluster, options, quiet):
    hog = occupied()
    try:
        with pytest.raises(AsdPolicyError, match=r"placed no policy in 1 seconds; free now: 0 CPU"):
            run(options, quiet, patience_s=1.0)
    finally:
        ray.kill(hog)
    assert nothing_is_left_running()


def test_a_missing_gpu_or_cpu_is_an_error(cluster, options, quiet):
    with pytest.raises(AsdPolicyError, match="needs a GPU, and the cluster has none"):
        run(dataclasses.replace(options, device="cuda"), quiet)
    with pytest.raises(
        AsdPolicyError, match=r"largest node has 4 CPUs, and a policy needs 4 there and 1"
    ):
        run(dataclasses.replace(options, threads=4), quiet)


def test_a_checkpoint_travels_as_bytes(cluster, options, quiet, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "card.json").write_text("{ not JSON")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"card\.json"):
        evaluate(dataclasses.replace(options, checkpoint=folder), console=quiet)


def test_the_node_of_the_policy_is_killed(cluster, options, quiet, tmp_path):
    """The policy and its environments go on together on another node."""

    hog = occupied()
    node = add_node(cluster, 4)  # the only one with room
    cluster.wait_for_nodes()
    many = dataclasses.replace(options, episodes=20, num_envs=3)
    world = functools.partial(Traced, folder=tmp_path)
    setup = functools.partial(prepare, env_class=world, step_s=0.02, workers=True)

    def there(asked):
        made = prepare_on_ray(asked, prepare=setup, patience_s=400.0)
        ray.kill(hog)
        crew = made.crew
        gather = crew._finished

        def kill_one(*args):
            if len(episodes(many.out)) == 4 and node in cluster.list_all_nodes():
                cluster.remove_node(node, allow_graceful=False)
            return gather(*args)

        crew._finished = kill_one
        return made

    results = evaluate(many, prepare=there, console=quiet)
    assert node not in cluster.list_all_nodes()
    assert outcomes(many.out) == outcomes(here(many, quiet, tmp_path))
    assert results["restarts"] >= 1
    assert nothing_is_left_running()
