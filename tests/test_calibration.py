"""What is learned between chunks: slopes, acceptance, cost, and the window chosen from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import Calibration, SamplerConfig, Schedule
from asd_policy.errors import InputError
from asd_policy.samplers.acceptance import Acceptance, choose_window
from asd_policy.samplers.costs import Calls, Costs, best_window, candidates
from reference.chains import bulk_noise, run
from reference.mixture import Mixture

STEPS = 40
SCHEDULE = Schedule.ddpm(STEPS, clip_sample=False, prediction_type="sample")


def known(accepted: np.ndarray, decided: int = 10_000) -> Calibration:
    """A calibration that has seen ``decided`` decisions a step, accepted at the given rates."""
    counts = [round(float(p) * decided) for p in accepted]
    return Calibration.from_dict(
        {
            "chunks": 50,
            "slope_cross": [0.0] * STEPS,
            "slope_square": [1.0] * STEPS,
            "accepted": [*counts[:-1], 0],
            "decided": [*[decided] * (STEPS - 1), 0],
        }
    )


def acceptance(accepted: np.ndarray, decided: int = 10_000) -> Acceptance:
    """The same, as windows are chosen by it."""
    found = known(accepted, decided).learned.acceptance
    assert found is not None
    return found


def costs(calibration: Calibration, base: float, per_row: float) -> Calibration:
    """Give it a network that takes base + per_row·rows seconds."""
    rows = (1, 4, 16, 64, 512)
    calibration.costs = Costs(rows, tuple(base + per_row * n for n in rows))
    return calibration


@pytest.mark.parametrize("bend", [0.0, 0.02])
def test_slopes_are_those_of_a_linear_denoiser(bend: float) -> None:
    """x̂0 = c[n]·x has slope c[n]; neighbouring steps are evened out, so a ramp is bent a little."""
    slopes = 0.5 + bend * torch.arange(STEPS, dtype=torch.float64)
    calibration = Calibration()
    assert calibration.slopes(STEPS).tolist() == [0.0] * STEPS

    def network(x, timesteps, cond):  # type: ignore[no-untyped-def]
        return slopes[STEPS - 1 - timesteps].unsqueeze(1) * x

    config = SamplerConfig("asd", "memory", 1, 16)
    for seed in range(3):
        run(config, network, SCHEDULE, bulk_noise(50, STEPS, 4, seed), calibration)
    learned = calibration.slopes(STEPS)[10:-3]
    tolerance = 1e-9 + 3 * bend
    torch.testing.assert_close(learned, slopes[10:-3], rtol=0, atol=tolerance)
    assert calibration.chunks == 3


def test_learned_slopes_save_calls() -> None:
    network = Mixture(8).network(SCHEDULE)
    calibration, calls = Calibration(), []
    for seed in range(4):
        noise = bulk_noise(200, STEPS, 8, seed)
        _, stats = run(SamplerConfig("asd", "slope", 1, 16), network, SCHEDULE, noise, calibration)
        calls.append(float(stats.calls.double().mean()))
    assert max(calls[2:]) < calls[0] - 0.5


def test_a_chunks_own_evaluations_do_not_change_it() -> None:
    """Slopes come from earlier chunks: an empty calibration is the same, frozen or not."""
    network, noise = Mixture(6).network(SCHEDULE), bulk_noise(5, STEPS, 6, 0)
    learning, frozen = Calibration(), Calibration()
    frozen.frozen = True
    config = SamplerConfig("asd", "secant", 1, 8)
    drawn = [run(config, network, SCHEDULE, noise, c)[0] for c in (learning, frozen)]
    assert torch.equal(*drawn)
    assert learning.chunks == 1
    assert learning.slopes(STEPS).any()
    assert frozen.chunks == 0
    assert not frozen.slopes(STEPS).any()


def test_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="is for 40 steps, the schedule has 10"):
        asd_policy.sample(
            Mixture(4).network(SCHEDULE), SCHEDULE, shape=(1, 4), steps=10,
            calibration=known(np.ones(STEPS)),
        )  # fmt: skip


def test_dict_round_trip() -> None:
    calibration = Calibration()
    network = Mixture(4).network(SCHEDULE)
    noise = bulk_noise(30, STEPS, 4, 0)
    run(SamplerConfig("asd", "slope", 1, 12), network, SCHEDULE, noise, calibration)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    torch.testing.assert_close(again.slopes(STEPS), calibration.slopes(STEPS), rtol=1e-3, atol=1e-3)
    assert again.to_dict() == calibration.to_dict()
    assert again.chunks == 1
    assert Calibration.from_dict({}).to_dict() == {}


def simulated(accept: np.ndarray, window: int, count: int = 4000) -> np.ndarray:
    """(count, 2) rounds and rows of chunks whose step n is accepted with probability p[n]."""
    rng, results = np.random.default_rng(0), []
    for _ in range(count):
        n, rounds, rows = 0, 0, 0
        while n < STEPS:
            width = min(window, STEPS - n)
            rounds, rows = rounds + 1, rows + width
            for _ in range(width):
                n += 1
                if n < STEPS and rng.uniform() > accept[n - 1]:
                    break
        results.append((rounds, rows))
    return np.array(results)


@pytest.mark.parametrize("window", [1, 4, 16, 40])
def test_expected_rounds_are_those_of_a_simulation(window: int) -> None:
    accept = np.clip(1.02 - np.linspace(0, 0.8, STEPS) ** 2, 0, 1)
    expected = acceptance(accept, 10**9).expected_rounds(window)
    outcomes = simulated(accept, window)
    error = outcomes.std(0) / np.sqrt(len(outcomes))
    # Five standard errors: a false alarm in two million.
    assert np.all(np.abs(outcomes.mean(0) - expected) <= 5 * error + 1e-6)


def summed_directly(known: Acceptance, window: int) -> np.ndarray:
    """(2,) rounds and rows: at each step, the sum over where its round ends."""
    accept, steps = known.by_step(), len(known.decided)
    expected = np.zeros((steps + 1, 2))
    for n in range(steps - 1, -1, -1):
        width = min(window, steps - n)
        reach = np.concatenate([[1.0], np.cumprod(accept[n : n + width])])
        ends = np.append(reach[:-1] * (1 - accept[n : n + width]), reach[-1])
        after = [*range(n + 1, n + width + 1), n + width]
        expected[n] = ends @ expected[after] + (1, width)
    return expected[0]


@pytest.mark.parametrize("window", [1, 2, 16, 64, 1000])
@pytest.mark.parametrize("rates", ["any", "high", "none", "all", "none or all"])
def test_expected_rounds_of_a_long_chain_are_the_sums(rates: str, window: int) -> None:
    """Which are summed in a way that does not take a second for a thousand steps, and loses no
    digits where products of a thousand acceptances vanish."""
    rng = np.random.default_rng(0)
    chances = {
        "any": rng.uniform(0, 1, 1000),
        "high": rng.uniform(0.9, 1, 1000),
        "none": np.zeros(1000),
        "all": np.ones(1000),
        "none or all": rng.integers(0, 2, 1000).astype(float),
    }
    known = Acceptance(chances[rates] * 1e12, np.full(1000, 1e12))
    assert known.expected_rounds(window) == pytest.approx(summed_directly(known, window), rel=1e-8)


def test_a_typical_chain_s_window_is_chosen_once() -> None:
    """Pictures have a calibration for each call."""
    measured = Costs((1, 64), (1.0, 2.0))
    before = choose_window.cache_info().hits
    windows = {choose_window(Acceptance.typical(777), measured, 3, 777) for _ in range(2)}
    assert len(windows) == 1
    assert choose_window.cache_info().hits == before + 1


@pytest.mark.parametrize(
    ("base", "per_row", "low", "high"),
    [(1.0, 0.0, 32, STEPS), (1.0, 0.03, 8, 24), (0.0, 1.0, 1, 1), (0.05, 1.0, 1, 4)],
)
def test_window_follows_the_cost_of_rows(base: float, per_row: float, low: int, high: int) -> None:
    """Flat cost: as wide as it goes. Cost in proportion to rows: sequential. Between: between."""
    calibration = costs(known(np.full(STEPS, 0.9)), base, per_row)
    assert low <= calibration.window(1, STEPS) <= high


def test_window_follows_acceptance() -> None:
    windows = [
        costs(known(np.full(STEPS, rate)), 1.0, 0.08).window(1, STEPS)
        for rate in (0.02, 0.5, 0.8, 0.95, 1.0)
    ]
    assert windows == sorted(windows)
    assert windows[0] == 1
    assert windows[-1] >= 16


def test_window_one_runs_sequentially_and_says_so() -> None:
    calibration = costs(known(np.full(STEPS, 0.9)), 0.0, 1.0)
    noise = bulk_noise(1, STEPS, 4, 0)
    network = Mixture(4).network(SCHEDULE)
    samples, stats = run(SamplerConfig("asd"), network, SCHEDULE, noise, calibration)
    expected, _ = run(SamplerConfig("ddpm"), network, SCHEDULE, noise)
    assert torch.equal(samples, expected)
    assert (stats.sampler, stats.window) == ("asd", 1)
    assert stats.calls.tolist() == [STEPS]


def test_window_without_measurements_is_16() -> None:
    assert Calibration().window(1, 100) == 16
    assert Calibration().window(1, 10) == 10
    assert known(np.ones(STEPS)).window(1, STEPS) == 16  # acceptance, but no cost


def test_calibrate_learns_and_measures() -> None:
    done = []
    network = Mixture(4).network(SCHEDULE)
    calibration = asd_policy.calibrate(
        network, SCHEDULE, shape=(4, 4), chunks=2, window=8, progress=done.append,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    windows = candidates(STEPS)
    assert done == list(range(1, 2 * len(windows) + 1))
    assert calibration.chunks == 2
    assert not calibration.frozen
    assert calibration.costs is not None
    kept = calibration.to_dict()["windows"]
    assert list(kept) == [str(window) for window in windows]
    assert {sum(of["calls"].values()) for of in kept.values()} == {4, 8}  # one window's first fell
    result = asd_policy.sample(network, SCHEDULE, shape=(4, 4), calibration=calibration)
    assert result.calibration is calibration
    assert calibration.chunks in (2, 3)  # 2 where the sequential sampler is the faster


def test_calibrate_forgets_the_acceptance_of_its_first_chunk() -> None:
    """It was drawn without slopes, and would make later windows too narrow."""
    network = Mixture(4).network(SCHEDULE)
    options = {"shape": (4, 4), "window": 8, "measure_costs": False}
    one, three = (
        asd_policy.calibrate(network, SCHEDULE, chunks=chunks, **options).to_dict()
        for chunks in (1, 3)
    )
    assert one["decided"] == [4] * 39 + [0]
    assert three["decided"] == [8] * 39 + [0]
    assert three["chunks"] == 3
    assert sum(one["windows"]["8"]["calls"].values()) == 4
    assert sum(three["windows"]["8"]["calls"].values()) == 8


def test_calls_become_those_that_were_counted_with_the_window() -> None:
    """Not those foreseen from the acceptance by step of another window."""
    learned = known(np.full(STEPS, 0.9)).learned

    def calls() -> Calls:
        learned.settle()
        assert learned.acceptance is not None
        return learned.acceptance.calls_of(16)

    foreseen = calls()
    counts, ones = torch.tensor([4, 5, 5, 6]), torch.ones((4, STEPS), dtype=torch.int64)
    learned.count_calls(asd_policy.Stats("asd", 16, counts[:2], counts[:2], ones[:2], ones[:2]))
    assert calls().beyond.sum() == pytest.approx(foreseen.beyond.sum()), "two are too few"
    learned = known(np.full(STEPS, 0.9)).learned
    learned.count_calls(asd_policy.Stats("asd", 16, counts, 8 * counts, ones, ones))
    assert 5 < calls().beyond.sum() < foreseen.beyond.sum()
    for _ in range(5000):
        learned.count_calls(asd_policy.Stats("asd", 16, counts, 8 * counts, ones, ones))
    measured = calls()
    assert measured.beyond[:7] == pytest.approx([1, 1, 1, 1, 0.75, 0.25, 0], abs=1e-3)
    assert measured.beyond.sum() == pytest.approx(5, abs=1e-3)
    assert measured.rows == pytest.approx(8)
    assert foreseen.beyond.sum() > 5.5
    learned = type(learned).from_dict(json.loads(json.dumps(learned.to_dict())))
    assert np.array_equal(calls().beyond, measured.beyond)


def test_windows_are_not_chosen_by_the_luck_of_a_few_chains() -> None:
    """Sixteen chains with each window, as a benchmark counts them at a new K: the window that is
    chosen takes on average 0.1% more than the best, where by its own count alone it took 1.2."""
    rng, windows = np.random.default_rng(0), candidates(STEPS)
    accept = np.full(STEPS, 0.87)
    foreseen = acceptance(accept, 10**4)
    cost = Costs((1, 64), (0.75e-3, 3.2e-3), 4e-5)
    means = {w: foreseen.expected_rounds(w)[0] * (1.03 - 0.01 * np.log(w)) for w in windows}
    rows = {w: foreseen.expected_rounds(w)[1] / foreseen.expected_rounds(w)[0] for w in windows}
    seconds = {w: means[w] * (float(cost.call(rows[w])) + cost.overhead) for w in windows}
    losses: dict[str, list[float]] = {"alone": [], "all": []}
    for _ in range(150):
        drawn = {
            w: np.rint(means[w] * (1 + 0.13 * rng.normal(size=16))).astype(int) for w in windows
        }
        calls = {w: np.bincount(c.clip(1, STEPS), minlength=STEPS + 1) for w, c in drawn.items()}
        evaluations = {w: int(rows[w] * (np.arange(STEPS + 1) @ c)) for w, c in calls.items()}
        learned = Acceptance(foreseen.accepted, foreseen.decided, calls, evaluations)
        alone = {w: Calls(1 - np.cumsum(c)[:-1] / 16, rows[w]) for w, c in calls.items()}
        for name, known_calls in (
            ("alone", alone), ("all", {w: learned.calls_of(w) for w in windows}),
        ):  # fmt: skip
            chosen = best_window(known_calls, cost, 1, STEPS)
            losses[name].append(seconds[chosen] / min(seconds.values()) - 1)
    print({name: (np.mean(found), np.quantile(found, 0.9)) for name, found in losses.items()})
    assert np.mean(losses["all"]) < 0.6 * np.mean(losses["alone"])
    assert np.quantile(losses["all"], 0.9) < 0.03


def test_what_one_window_teaches_is_of_use_to_all() -> None:
    """More calls than foreseen with one are more with its neighbours."""
    plain = known(np.full(STEPS, 0.9)).learned.acceptance
    assert plain is not None
    counts = np.bincount([12] * 400, minlength=STEPS + 1)
    taught = Acceptance(plain.accepted, plain.decided, {16: counts}, {16: 400 * 12 * 9})
    ratio = 12 / plain.expected_rounds(16)[0]
    for window in (8, 32):
        more = taught.calls_of(window).beyond.sum() / plain.calls_of(window).beyond.sum()
        assert more == pytest.approx(ratio, rel=0.12)


def test_the_window_is_chosen_anew_when_the_chunks_have_doubled() -> None:
    calibration = costs(known(np.full(STEPS, 0.3)), 1.0, 0.03)  # of 50 chunks
    narrow, ones = calibration.window(1, STEPS), torch.ones((4000, STEPS), dtype=torch.int64)
    calls = torch.full((4000,), 3)
    accepted = asd_policy.Stats("asd", 32, calls, calls, ones, ones, {}, np.zeros((2, STEPS)))
    for _ in range(49):
        calibration.learned.update(accepted)
    assert calibration.window(1, STEPS) == narrow
    calibration.learned.update(accepted)
    assert calibration.window(1, STEPS) > narrow


def test_a_frozen_calibration_keeps_its_window_whatever_chunks_take() -> None:
    """What a loop takes, on a machine that may be busy, is not looked at."""
    calibration = costs(known(np.full(STEPS, 0.95)), 0.04, 1e-4)
    calibration.frozen = True
    window, counts = calibration.window(4, STEPS), torch.ones((4, STEPS), dtype=torch.int64)
    assert window > 1
    for _ in range(20):
        slow = {"draft": 0.0, "network": 100.0, "verify": 0.0, "other": 0.0}
        calls = torch.full((4,), STEPS)
        calibration.learned.update(
            asd_policy.Stats("asd", window, calls, calls, counts, counts, slow)
        )
        assert calibration.window(4, STEPS) == window


def test_calibrate_takes_every_option_of_sample() -> None:
    """A float64 network is timed in float64, and a respaced chain with its own steps."""
    weight = torch.eye(4, dtype=torch.float64)
    calibration = asd_policy.calibrate(
        lambda x, t, cond: x @ weight, SCHEDULE, shape=(2, 4), chunks=1, window=4,
        dtype=torch.float64, steps=10,
    )  # fmt: skip
    assert len(calibration.slopes(10)) == 10
    assert calibration.costs is not None
    assert calibration.costs.rows[0] == 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim-10", "paradigms"])
def test_what_guesses_nothing_has_nothing_to_learn(sampler: str) -> None:
    calibration = asd_policy.calibrate(
        lambda x, t, cond: pytest.fail("called"), SCHEDULE, shape=(2, 4), sampler=sampler
    )
    assert calibration.costs is None


@pytest.mark.parametrize("wrong", [{"window": "auto"}, {"window": 0}, {"chunks": 1.5}])
def test_calibrate_says_what_is_no_number(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
        asd_policy.calibrate(Mixture(4).network(SCHEDULE), SCHEDULE, shape=(2, 4), **wrong)


def test_the_chance_of_the_end_is_that_of_accepting_every_step_that_is_left() -> None:
    rates = np.linspace(0.5, 0.95, STEPS)
    chance = acceptance(rates).chance_of_the_end(window=6)
    assert chance[STEPS] == chance[STEPS - 1] == 1, "the last step is never rejected"
    assert chance[STEPS - 4] == pytest.approx(rates[STEPS - 4 : STEPS - 1].prod(), rel=1e-3)
    assert chance[STEPS - 6] > 0
    assert not chance[: STEPS - 6].any(), "beyond the window"
    nothing_known = Acceptance.unknown(STEPS).chance_of_the_end(window=6)
    assert nothing_known[STEPS - 4] == pytest.approx(0.9**3)


@pytest.mark.parametrize(
    ("steps", "rejections"), [(5, 4 * 0.5), (100, 2 * 100 ** (1 / 3) * 0.96), (1000, 20 * 0.996)]
)
def test_a_typical_chain_has_as_many_rounds_as_rejections(steps, rejections):
    """2 K^⅓ of them, and one more round to the end, where no window is in the way. (The last step
    is never rejected, and no step more often than every other time.)"""
    typical = Acceptance.typical(steps)
    rounds, _ = typical.expected_rounds(steps)
    assert rounds == pytest.approx(1 + rejections, rel=2e-3)
    if steps > 5:
        rejected = 1 - typical.accepted / typical.decided
        assert rejected[-steps // 10 :].sum() == pytest.approx(0.4 * rejected.sum())
