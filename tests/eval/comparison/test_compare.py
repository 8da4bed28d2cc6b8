"""`asd-policy compare` over folders that the evaluator wrote."""

import json
from dataclasses import replace

import pytest
from eval_schemas import check
from eval_standin import prepare

from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.studies.compare import outcome
from asd_policy.eval.studies.compare.outcome import CALLS, LATENCY
from asd_policy.eval.studies.compare.pairing import Side, differing_settings
from asd_policy.eval.studies.evaluate import evaluate

# What compare.json may not hold.
WRONG = [
    ("status", 3),
    ("comparisons", []),
    ("comparisons/0/a/checkpoint_sha256", "abc"),
    ("comparisons/0/b/episodes", KeyError),
    ("comparisons/0/seeds/first", 1.5),
    ("comparisons/0/success/a/n", 0),
    ("comparisons/0/success/b/rate", 1.1),
    ("comparisons/0/success/difference_ci90", [0.0]),
    ("comparisons/0/success/worse", "no"),
    ("comparisons/0/success/more", 1),
    ("comparisons/0/ratios/network calls a chunk", KeyError),
    ("comparisons/0/ratios/network calls a chunk/ratio", "0.3"),
    ("comparisons/0/verdict/word", "PERHAPS"),
]


@pytest.fixture
def make(tmp_path, quiet):
    """make(name, **options) → the folder of an evaluation."""

    def run(name: str, **changes):
        options = EvalOptions(out=tmp_path / name, **({"episodes": 6, "horizon": 40} | changes))
        evaluate(options, prepare=prepare, console=quiet)
        return options.out

    return run


def rewrite(folder, change):
    """Change the episodes of a folder."""
    path = folder / "episodes.jsonl"
    episodes = [Episode.from_line(line) for line in path.read_text().splitlines()]
    path.write_text("".join(change(episode).to_line() + "\n" for episode in episodes))


def outcomes(folder, **failing: int):
    """All episodes succeed, but the first so many of a sampler."""
    first = json.loads((folder / "config.json").read_text())["settings"]["seed"]
    rewrite(folder, lambda e: replace(e, success=e.seed - first >= failing.get(e.sampler, 0)))


def test_two_samplers_of_one_run(run, make, tmp_path):
    folder = make("run", episodes=60)
    outcomes(folder)
    status, output, _ = run("compare", folder, "--json", tmp_path / "deep" / "c.json")
    assert status == 0, output
    content = json.loads((tmp_path / "deep" / "c.json").read_text())
    check("compare", content, WRONG)
    (found,) = content["comparisons"]
    assert (found["a"]["sampler"], found["b"]["sampler"]) == ("asd", "ddpm")
    calls = found["ratios"]["network calls a chunk"]
    assert (calls["a"], calls["b"], calls["ratio"], calls["ci95"]) == (3, 10, 0.3, [0.3, 0.3])
    latency = found["ratios"]["chunk latency, median (ms)"]
    assert (latency["a"], latency["b"]) == pytest.approx((3.0, 10.0))
    assert found["success"]["equivalent"]
    assert "EQUIVALENT (exit status 0): asd succeeds as often as ddpm, within 5 points" in output
    assert "0.3 to 0.3" in output


def test_robots_that_waited_for_one_call_give_no_interval_of_latency(run, make, tmp_path):
    folder = make("run", episodes=20)
    rewrite(folder, lambda e: replace(e, chunks=[c | {"batch": 4} for c in e.chunks]))
    _, output, _ = run("compare", folder, "--json", tmp_path / "c.json")
    (found,) = json.loads((tmp_path / "c.json").read_text())["comparisons"]
    latency, calls = (found["ratios"][name] for name in (LATENCY, CALLS))
    assert latency["ci95"] is None
    assert latency["ratio"] == pytest.approx(0.3)
    assert calls["ci95"] == [0.3, 0.3]
    assert "ratios of latency have no interval. Measure them with --num-envs 1" in output


def test_a_table_of_several_is_of_the_seeds_that_all_have_done(run, make, tmp_path):
    folder = make("run", episodes=12, samplers=("asd", "ddpm", "ddim"))
    outcomes(folder, asd=6, ddpm=6)
    path = folder / "episodes.jsonl"
    lines = [line for line in path.open() if not _late(Episode.from_line(line), "ddim", 6)]
    path.write_text("".join(lines))
    words = "compare", folder, "--samplers", "asd", "ddpm", "ddim", "--json", tmp_path / "c.json"
    run(*words)
    content = json.loads((tmp_path / "c.json").read_text())
    assert {row["success"]["n"] for row in content["letters"]} == {6}
    assert [found["seeds"]["left_out_of_a"] for found in content["comparisons"]] == [6, 6, 6]


def _late(episode, sampler, first):
    return episode.sampler == sampler and episode.seed % 100_000 >= first


@pytest.mark.parametrize(
    ("only_asd", "only_ddpm", "n", "word"),
    [(4, 4, 206, "NOT WORSE"), (4, 18, 206, "WORSE"), (18, 4, 206, "BETTER")],
)
def test_what_is_decided_is_not_contradicted(only_asd, only_ddpm, n, word):
    """The interval of a one-sided decision is that of 90%; a difference is told with its e-value,
    which may be decided before the interval leaves 0."""
    asd = {s: s >= only_ddpm for s in range(n)}
    ddpm = {s: not only_ddpm <= s < only_ddpm + only_asd for s in range(n)}
    success = outcome.success_of(asd, ddpm, 0.05)
    sequential = outcome._sequential(success, 0.05)
    found = outcome._decided(("asd", "ddpm"), success, sequential, 0.05)
    assert found["word"] == word
    if word == "NOT WORSE":
        assert sequential["difference_ci90"][0] > -0.05 > sequential["difference_ci95"][0]
        assert "90% interval that holds whenever one stops -4." in found["sentence"]
    else:
        assert "e-value 2" in found["sentence"]
        assert " of 20, 95% interval" in found["sentence"]


def test_a_run_s_horizon_may_be_its_task_s(run, make):
    """Lift's is 400: it may be asked for, or left to the task."""
    a, b = make("a", horizon=400), make("b", horizon=400)
    path = b / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["horizon"] = None
    write_json(path, config)
    words = "--samplers", "asd", "asd"
    assert run("compare", a, b, *words)[0] == 2  # too few episodes, and no other complaint
    config["settings"]["horizon"] = 100
    write_json(path, config)
    _, _, errors = run("compare", a, b, *words)
    assert "runs of one horizon can be compared; got 400 in" in errors


def test_worse_is_exit_status_1(run, make):
    folder = make("run", episodes=40)
    outcomes(folder, asd=20)
    status, output, _ = run("compare", folder)
    assert status == 1
    assert "WORSE (exit status 1): asd is worse than ddpm by more than 5 points" in output
    assert "only asd 0, only ddpm 20" in output


def test_better_is_not_worse(run, make):
    folder = make("run", episodes=40)
    outcomes(folder, ddpm=20)
    status, output, _ = run("compare", folder)
    assert status == 0
    assert "NOT WORSE (exit status 0): asd is not worse than ddpm by more than 5 points" in output


def test_too_few_episodes_are_exit_status_2(run, make):
    folder = make("run")
    outcomes(folder)
    status, output, errors = run("compare", folder)
    assert status == 2
    assert "COULD NOT TELL, TOO FEW EPISODES (exit status 2)" in output
    assert "common seeds, looked at once, would tell with a chance of 80% (there are 6)" in output
    assert "error:" not in output + errors
    assert run("compare", folder, "--margin", 0.5)[0] == 0, "a wide margin needs few"


def test_the_other_order_asks_the_other_question(run, make):
    folder = make("run", episodes=40)
    outcomes(folder, asd=20)
    assert run("compare", folder, "--samplers", "ddpm", "asd")[0] == 0


def test_two_runs_with_other_seeds(run, make, tmp_path):
    a, b = make("a", episodes=8), make("b", episodes=10, seed=100_003)
    status, output, _ = run("compare", a, b, "--samplers", "asd", "ddpm", "--json", tmp_path / "c")
    assert status == 2
    (found,) = json.loads((tmp_path / "c").read_text())["comparisons"]
    assert found["seeds"] == {
        "common": 5, "same_scene": 5, "first": 100_003, "last": 100_007,
        "left_out_of_a": 3, "left_out_of_b": 5,
    }  # fmt: skip
    assert (
        "Left out, because the other has not done their seeds: 3 of asd in A, 5 of ddpm in B"
        in (output)
    )


def test_two_runs_compare_each_sampler_that_they_share(run, make, tmp_path):
    a, b = make("a", episodes=60), make("b", episodes=60, samplers=("ddpm", "asd", "ddim"))
    outcomes(a)
    outcomes(b)
    status, output, _ = run("compare", a, b, "--json", tmp_path / "c.json")
    assert status == 0
    content = json.loads((tmp_path / "c.json").read_text())
    check("compare", content)
    assert [c["a"]["sampler"] for c in content["comparisons"]] == ["asd", "ddpm"]
    assert "asd in a succeeds as often as asd in b" in output


def test_one_bad_comparison_decides(run, make):
    a, b = make("a", episodes=60), make("b", episodes=60)
    outcomes(a, ddpm=40)
    outcomes(b)
    status, output, _ = run("compare", a, b)
    assert status == 1
    assert "asd in a succeeds as often" in output


def test_other_machines_and_threads_are_said(run, make):
    a, b = make("a"), make("b")
    config = json.loads((b / "config.json").read_text())
    config["resolved"]["threads"] = 8
    write_json(b / "config.json", config)
    _, output, _ = run("compare", a, b)
    assert "Latencies are not of one setting" in output
    assert "threads 1 and 8" in output


def test_other_settings_are_said(run, make, tmp_path):
    one, other, same = make("a"), make("b", delay=40.0), make("c")
    for folder, window in ((one, 8), (other, 4), (same, 8)):
        config = json.loads((folder / "config.json").read_text())
        config["resolved"]["windows"] = {"asd": window}
        write_json(folder / "config.json", config)
    _, output, _ = run("compare", one, other, "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["comparisons"]
    delay = "delay None and 40.0"
    assert [each["different_settings"] for each in found] == [[delay, "window 8 and 4"], [delay]]
    assert "The settings differ: delay None and 40.0; window 8 and 4" in " ".join(output.split())
    assert "The settings differ" not in run("compare", one, same)[1]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"samplers": ["asd", "ddpm"], "delay": [40, 80]},
         {"samplers": ["ddpm", "asd"], "delay": [40, 80]}, ["delay 40 and 80"]),
        ({"samplers": ["asd"], "delay": 40}, {"samplers": ["asd", "ddpm"], "delay": [40, 80]}, []),
        ({"samplers": ["asd"], "delay": [40]}, {"samplers": ["asd"], "delay": 40}, []),
        ({"samplers": ["asd"], "delay": 40, "control_rate": 10.0},
         {"samplers": ["asd"], "delay": 40}, ["control_rate 10.0 and 20.0"]),
        ({"samplers": ["asd"], "control_rate": 10.0}, {"samplers": ["asd"]}, []),
    ],
)  # fmt: skip
def test_a_delay_is_a_sampler_s_own(tmp_path, ours, theirs, said):
    sides = [Side(tmp_path, "asd", {"settings": each}, {}, {}) for each in (ours, theirs)]
    assert differing_settings(*sides) == said


def test_what_a_run_of_before_does_not_say_is_no_difference(tmp_path):
    def side(**config):
        return Side(tmp_path, "paradigms", {"settings": {}} | config, {}, {})

    new = side(resolved={"windows": {"paradigms": 32}, "etas": {}, "steps": {"paradigms": 100}})
    assert differing_settings(side(resolved={}), new) == []
    tight, loose = (side(samplers={"paradigms": {"tolerance": t}}) for t in (0.1, 2.0))
    assert differing_settings(tight, loose) == ["tolerance 0.1 and 2.0"]


def change_settings(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= changes
    write_json(folder / "config.json", config)


def test_other_checkpoints_are_refused_unless_asked_for(run, refused, make):
    a, b = make("a"), make("b")
    change_settings(b, checkpoint_sha256="1" * 64)
    refused(r"error: the runs are of different checkpoints \(SHA-256 0000.*1111", "compare", a, b)
    status, output, _ = run("compare", a, b, "--allow-different-checkpoints")
    assert status in (0, 2)
    assert "The checkpoints differ." in output


def test_other_action_horizons_are_refused_unless_asked_for(run, refused, make):
    a, b = make("a"), make("b")
    config = json.loads((b / "config.json").read_text())
    config["resolved"]["horizons"] = [2, 4, 16]
    write_json(b / "config.json", config)
    refused(r"error: the runs' policies look back, act and plan for", "compare", a, b)
    assert run("compare", a, b, "--allow-different-checkpoints")[0] in (0, 2)


@pytest.mark.parametrize(("key", "other"), [("task", "can"), ("horizon", 300)])
def test_other_tasks_and_horizons_are_refused(refused, make, key, other):
    a, b = make("a"), make("b")
    change_settings(b, **{key: other})
    message = rf"error: runs of one {key} can be compared; got \w+ in .*a and {other} in"
    refused(message, "compare", a, b, "--allow-different-checkpoints")


def test_mistakes_are_one_sentence(refused, make, tmp_path):
    a = make("a", samplers=("asd", "ddpm", "ddim"))
    b = make("b", samplers=("paradigms",), seed=7)
    refused(r"error: expected an evaluation's folder with a config.json, got .*none", "compare",
            tmp_path / "none")  # fmt: skip
    refused(r"error: .*has the samplers asd, ddpm, ddim; name two", "compare", a)
    refused(r"error: the runs share no sampler \(asd, ddpm, ddim; paradigms\)", "compare", a, b)
    refused(r"error: .*has no sampler 'euler'; it has asd, ddpm, ddim", "compare", a,
            "--samplers", "euler", "ddpm")  # fmt: skip
    refused(r"error: no seed was done by both: asd in .* did 100000 to 100005, paradigms in .* did "
            r"7 to 12", "compare", a, b, "--samplers", "asd", "paradigms")  # fmt: skip
    refused(r"error: --margin must be above 0 and below 1, got 0.0", "compare", a, "--margin", 0)
    refused(r"error: --samplers takes two names.*got asd", "compare", a, "--samplers", "asd")
    refused(r"error: --samplers asd asd of one folder are the same", "compare", a,
            "--samplers", "asd", "asd")  # fmt: skip
    refused(r"error: compare takes one or two folders.*got 3", "compare", a, a, a)


def test_a_run_without_an_episode(refused, make):
    a = make("a")
    (a / "episodes.jsonl").write_text("")
    refused(r"error: .*a has no finished episode of asd", "compare", a)
    (a / "episodes.jsonl").unlink()
    refused(r"error: .*a holds no episodes: episodes.jsonl: No such file", "compare", a)


def test_unequal_scenes_are_not_called_the_same(run, refused, make):
    """Each episode keeps a digest of its first observation, and pairs are checked by it."""
    one, other = make("one"), make("other")
    lines = [json.loads(line) for line in (one / "episodes.jsonl").read_text().splitlines()]
    scenes = {(line["seed"], line["scene"]) for line in lines}
    assert len(scenes) == 6, "one for each seed, whatever the sampler"
    assert len({scene for _, scene in scenes}) == 6
    _, output, _ = run("compare", one, other, "--json", one / "found.json")
    assert "EQUIVALENT" in output or "COULD NOT TELL" in output
    assert "is not known" not in output
    found = json.loads((one / "found.json").read_text())
    assert [c["seeds"]["same_scene"] for c in found["comparisons"]] == [6, 6]
    rewrite(other, lambda e: replace(e, scene=None) if e.sampler == "asd" else e)
    _, output, _ = run("compare", one, other)
    assert output.count("Whether 6 of these seeds began with the same scene in both is not") == 1
    rewrite(other, lambda e: replace(e, scene="f" * 64))
    refused("6 of 6 common seeds began with different scenes", "compare", one, other)


def test_episodes_of_older_versions_are_read(make):
    line = json.loads((make("run", episodes=1) / "episodes.jsonl").read_text().splitlines()[0])
    assert Episode.from_line(json.dumps(line)).scene == line["scene"]
    del line["scene"]
    assert Episode.from_line(json.dumps(line)).scene is None
    del line["restarts"]
    with pytest.raises(ValueError, match="restarts: Field required"):
        Episode.from_line(json.dumps(line))
