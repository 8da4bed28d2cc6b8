"""What `--ray` is made of, as far as it needs no cluster; and that nothing else needs Ray."""

import subprocess
import sys

import pytest

from asd_policy import cli
from asd_policy.errors import AsdPolicyError
from asd_policy.eval.options import EvalOptions, check_options, command_line

OF_THE_CLUSTER = "asd_policy.eval.rollout.cluster"


def test_ray_is_imported_only_when_it_is_asked_for():
    program = (
        "import sys, asd_policy.cli, asd_policy.eval.commands.evaluate\n"
        "import asd_policy.eval.studies.evaluate\n"
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


# --- what fits -----------------------------------------------------------------------------------


def fit(*args):
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.rollout.cluster.connect import fit

    found = fit(*args)
    return found.policies, found.cpus, found.gpus, found.num_envs


def cpus(*counts):
    return [{"CPU": count, "memory": 1.0} for count in counts]


def gpus(*counts):
    return [{"CPU": cpus, "GPU": gpus} for gpus, cpus in counts]


@pytest.mark.parametrize(
    ("nodes", "free", "policies", "each", "num_envs", "expected"),
    [
        (cpus(4), 4, 1, 1, 2, (1, 1, 0, 2)),
        (cpus(4), 4, 1, 1, 9, (1, 1, 0, 3)),
        (cpus(2, 8, 4), 14, 1, 2, 99, (1, 2, 0, 6)),  # on the largest node
        (cpus(4), 0, 1, 1, 9, (1, 1, 0, 3)),  # waited for
        (cpus(8), 5, 1, 1, 9, (1, 1, 0, 4)),
        (gpus((2, 16), (2, 16)), 32, 4, 1, 9, (4, 1, 1, 7)),
        (
            gpus(
                (8, 16),
            ),
            16,
            8,
            3,
            9,
            (4, 3, 1, 1),
        ),  # fewer policies than GPUs
        (gpus((1, 64), (1, 8)), 72, 2, 1, 32, (2, 1, 1, 7)),  # the smaller node's decides
        (gpus((1, 64), (1, 8)), 72, 1, 1, 32, (1, 1, 1, 32)),
    ],
)
def test_what_fits_on_the_nodes(nodes, free, policies, each, num_envs, expected):
    assert fit(nodes, free, policies, each, num_envs) == expected


def test_a_cluster_without_room_for_one_environment_is_an_error():
    with pytest.raises(AsdPolicyError, match="largest node has 4 CPUs, and a policy needs 4 there"):
        fit(cpus(4, 3), 7, 1, 4, 1)


# --- what is sent --------------------------------------------------------------------------------


def host():
    pytest.importorskip("ray", reason="needs the extra: pip install 'asd-policy[ray]'")
    from asd_policy.eval.rollout.cluster import host

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
