"""The sentence that a page begins with is true of every run."""

import copy

import pytest

from asd_policy.eval.samplers import law_of
from asd_policy.eval.show.headline import as_text, headlines
from asd_policy.eval.stats.basics import paired_success


def sampler(count, n, calls, ms, clock=None):
    return {
        "success": {"count": count, "n": n},
        "network_calls_per_chunk": calls,
        "chunk_latency_ms": {"p50": ms},
        "speedup": {"wall_clock": clock},
    }


def outcomes(successes, n=20, start=0):
    return {seed: start <= seed < start + successes for seed in range(n)}


@pytest.fixture
def results():
    """asd and ddpm, 20 of 20 both."""
    return {
        "complete": True,
        "num_envs": 1,
        "samplers": {
            "asd": sampler(20, 20, 13.86, 76, 2.88),
            "ddpm": sampler(20, 20, 100.0, 219, 1),
        },
        "paired": [{"a": "asd", "b": "ddpm", **paired_success(outcomes(20), outcomes(20))}],
    }


def said(results, busy=False):
    return {name: as_text(s, results) for name, s in headlines(results, busy).items()}


def with_outcomes(results, a, b):
    changed = copy.deepcopy(results)
    changed["paired"][0] |= paired_success(a, b)
    return changed


def test_the_usual_case(results):
    expected = "same success as DDPM on 20 seeds, 2.9x faster, 13.9 calls for 100"
    assert said(results) == {"asd": expected}


def test_the_order_of_the_samplers_does_not_matter(results):
    results["samplers"] = dict(reversed(results["samplers"].items()))
    pair = paired_success(outcomes(20), outcomes(18))
    results["paired"] = [{"a": "ddpm", "b": "asd", **pair}]
    assert said(results)["asd"].startswith("18 successes against DDPM's 20 on 20 seeds (")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (outcomes(10), outcomes(10, start=10), "same success as DDPM on 20 seeds"),
        (outcomes(18), outcomes(20),
         "18 successes against DDPM's 20 on 20 seeds (a difference within chance)"),
        (outcomes(20), outcomes(19),
         "20 successes against DDPM's 19 on 20 seeds (a difference within chance)"),
        (outcomes(8), outcomes(20),
         "8 successes against DDPM's 20 on 20 seeds (a difference beyond chance)"),
        (outcomes(20), outcomes(8),
         "20 successes against DDPM's 8 on 20 seeds (a difference beyond chance)"),
        (outcomes(1, 1), outcomes(1, 1), "same success as DDPM on 1 seed"),
    ],
)  # fmt: skip
def test_success_is_compared_on_the_same_seeds(results, ours, theirs, expected):
    changed = with_outcomes(results, ours, theirs)
    assert said(changed)["asd"] == expected + ", 2.9x faster, 13.9 calls for 100"


@pytest.mark.parametrize(
    ("clock", "expected"),
    [(2.88, "2.9x faster"), (12.0, "12.0x faster"), (1.06, "1.1x faster"),
     (1.04, "about as fast"), (0.96, "about as fast"), (0.5, "2.0x slower")],
)  # fmt: skip
def test_speed_is_said_whichever_is_faster(results, clock, expected):
    results["samplers"]["asd"]["speedup"]["wall_clock"] = clock
    assert said(results)["asd"].split(", ")[1] == expected


def test_a_busy_machine_and_a_batch_are_said_beside_the_speed(results):
    assert ", 2.9x faster (on a machine busy with other work), " in said(results, True)["asd"]
    results["num_envs"] = 8
    both = " (8 robots in one batch, on a machine busy with other work), "
    assert both in said(results, True)["asd"]


def test_an_incomplete_run(results):
    changed = with_outcomes(results, outcomes(7, 7), outcomes(9, 9)) | {"complete": False}
    assert said(changed)["asd"].startswith("same success as DDPM on 7 seeds so far, 2.9x")
    fewer = with_outcomes(changed, outcomes(6, 7), outcomes(7, 7))
    expected = "6 successes against DDPM's 7 on 7 seeds so far (a difference within chance), 2.9x"
    assert said(fewer)["asd"].startswith(expected)
    nothing = with_outcomes(changed, {}, {})
    assert said(nothing)["asd"] == "no seed is finished by both it and DDPM yet"
    changed["samplers"]["asd"] = sampler(7, 7, None, None)  # only chunks that are left out
    assert said(changed)["asd"] == "same success as DDPM on 7 seeds so far"


def test_without_ddpm_nothing_is_compared(results):
    del results["samplers"]["ddpm"]
    results["paired"] = []
    assert said(results) == {
        "asd": "20 of 20 episodes succeeded, 13.9 calls and 76 ms a chunk; "
        "no DDPM in this run to compare with"
    }
    assert " a chunk (on a machine busy with other work); " in said(results, True)["asd"]
    results["samplers"]["asd"]["success"] = {"count": 0, "n": 0}
    assert said(results)["asd"] == "no episode is finished yet"


def test_ddpm_alone(results):
    del results["samplers"]["asd"]
    results["paired"] = []
    assert said(results)["ddpm"].endswith(
        "219 ms a chunk; no other sampler in this run to compare with"
    )


def test_several_samplers_have_a_sentence_each_against_ddpm(results):
    results["samplers"]["ddim-10"] = sampler(20, 20, 10.0, 26, 8.4)
    pair = paired_success(outcomes(20), outcomes(20))
    results["paired"] += [{"a": a, "b": "ddim-10", **pair} for a in ("asd", "ddpm")]
    assert list(said(results)) == ["asd", "ddim-10"]
    assert ["busy" in sentence for sentence in said(results, True).values()] == [True, False]
    assert said(results)["ddim-10"].endswith("8.4x faster, 10 calls for 100")


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("asd", "exact"), ("asd-paper", "exact"), ("asd-frozen", "exact"),
        ("ddpm", "exact: the reference"), ("ddim", "approximate"), ("ddim-16", "approximate"),
        ("paradigms", "approximate"), ("ddim-clipped", "approximate"),
        ("asd-ddim", "exact for ddim-clipped's chain, not DDPM's"),
        ("<b>asd</b>", None),
    ],
)  # fmt: skip
def test_each_sampler_is_marked(name, law):
    assert law_of(name) == law
