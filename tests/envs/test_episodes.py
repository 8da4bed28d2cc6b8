"""One demonstration: a pure function of its numbers, aligned row by row."""

import numpy as np
import pytest

from asd_policy.envs.episodes import (
    LEADS,
    NOISE_CORRELATION,
    PUSH_STEPS,
    STEPS_AFTER_SUCCESS,
    Disturbance,
    episode_streams,
    run_episode,
)
from asd_policy.envs.experts.lift import LiftExpert


@pytest.fixture(scope="module")
def episode(lift):
    return run_episode(lift, 0.1, seed=7, index=2)


def test_the_same_numbers_give_the_same_episode(lift, episode):
    run_episode(lift, 0.1, seed=7, index=3)
    again = run_episode(lift, 0.1, seed=7, index=2)
    assert again.success
    for name, column in episode.arrays().items():
        assert np.array_equal(column, again.arrays()[name]), name


def test_other_numbers_give_another(lift, episode):
    for other in (run_episode(lift, 0.1, seed=7, index=3), run_episode(lift, 0.1, seed=8, index=2)):
        assert not np.array_equal(other.state[0], episode.state[0])


def test_the_action_of_a_row_leads_to_the_next(lift, episode):
    """Played back from its seed, what was executed visits the recorded states."""
    observation, _ = lift.reset(seed=episode_streams(7, 2).world)
    for row in range(len(episode)):
        assert np.array_equal(lift.flat_state(), episode.state[row])
        for key, value in observation.items():
            assert np.array_equal(value, episode.observations[key][row]), (key, row)
        observation, reward, *_ = lift.step(episode.executed_action[row])
        assert reward == episode.reward[row]


def test_it_ends_soon_after_success_and_succeeds_to_the_end(episode):
    assert episode.success
    assert episode.reward.sum() == STEPS_AFTER_SUCCESS
    assert (episode.reward[-STEPS_AFTER_SUCCESS:] == 1).all()
    assert (episode.action[-STEPS_AFTER_SUCCESS:, 2] > 0.3).all()  # upwards, not waiting


def test_without_noise_what_is_recorded_is_what_was_executed(lift):
    episode = run_episode(lift, 0.0, seed=0, index=0)
    assert np.array_equal(episode.action, episode.executed_action)


def test_with_noise_the_recorded_action_is_the_clean_one(episode):
    difference = (episode.executed_action - episode.action)[:, :6]
    assert 0.03 < difference.std() < 0.2
    assert np.array_equal(episode.action[:, 6], episode.executed_action[:, 6])
    assert set(np.unique(episode.action[:, 6])) == {-1.0, 1.0}


def test_a_pushed_episode_begins_somewhere_on_the_way_and_succeeds(lift):
    pushed = [run_episode(lift, 0.05, seed=7, index=index, pushed=1.0) for index in range(6)]
    again = run_episode(lift, 0.05, seed=7, index=0, pushed=1.0)
    assert np.array_equal(pushed[0].state, again.state)
    assert all(episode.success for episode in pushed)
    start, _ = lift.reset(seed=episode_streams(7, 0).world)
    usual, began = start["robot0_eef_pos"], lift.flat_state()[0]
    away = [np.abs(episode.observations["robot0_eef_pos"][0] - usual).max() for episode in pushed]
    assert max(away) > 0.05
    for episode in pushed:
        assert 20 * (episode.state[0, 0] - began) > PUSH_STEPS[0] - 0.5
        assert np.abs(episode.action - episode.executed_action).std() < 0.1  # the push is not in it


def test_where_a_learner_has_driven_the_expert_takes_over(lift):
    """One that pulls the arm up: the record begins up there, and holds none of its actions."""

    class Upwards:
        def reset(self, seeds):
            self.seed, self.steps = seeds, 0

        def act(self, observation):
            self.steps += 1
            return np.array([0, 0, 0.5, 0, 0, 0, -1], dtype=np.float32)

    learner = Upwards()
    episodes, steps = [], []
    for index in range(4):
        episodes.append(run_episode(lift, 0.05, seed=7, index=index, learner=learner))
        assert learner.seed == episode_streams(7, index).learner
        steps.append(learner.steps)
    assert len(set(steps)) > 1
    assert max(steps) < LEADS * lift.task.demonstration_limit
    start, _ = lift.reset(seed=episode_streams(7, 0).world)
    passed = [20 * (episode.state[0, 0] - lift.flat_state()[0]) for episode in episodes]
    np.testing.assert_allclose(passed, steps, atol=0.5)
    led = [e.observations["robot0_eef_pos"][0, 2] - start["robot0_eef_pos"][2] for e in episodes]
    assert max(led) > 0.1
    assert all(episode.success for episode in episodes)
    again = run_episode(lift, 0.05, seed=7, index=3, learner=learner)
    assert np.array_equal(again.state, episodes[3].state)


def test_no_record_begins_after_the_task_is_solved(lift):
    """A learner that solves it in a third of the time drawn from: the moment is drawn again."""

    class Solver:
        def reset(self, seeds):
            self.expert = LiftExpert(lift.simulation, np.random.default_rng(0))

        def act(self, observation):
            return self.expert.act()

    began = []
    for index in range(8):
        start, _ = lift.reset(seed=episode_streams(7, index).world)
        start_time = lift.flat_state()[0]
        episode = run_episode(lift, 0.05, seed=7, index=index, learner=Solver())
        assert episode.success
        lifted = episode.observations["object"][0, 2] - start["object"][2]
        assert lifted < 0.04
        began.append(20 * (episode.state[0, 0] - start_time))
    assert max(began) - min(began) > 10


def test_the_share_of_pushed_episodes(lift):
    """Which are pushed is drawn per episode; the others are those of a collection without."""
    alike = []
    for index in range(10):
        plain, maybe = (run_episode(lift, 0.1, 7, index, pushed) for pushed in (0.0, 0.5))
        alike.append(np.array_equal(plain.state[0], maybe.state[0]))
    assert 1 <= sum(alike) <= 9


def test_the_noise_has_the_stated_scale_and_correlation():
    """Over 20000 steps the standard error of either figure is below 0.02 of its unit."""
    disturbance = Disturbance(0.1, 14, np.random.default_rng(0))
    noise = np.array([disturbance.added_to(np.zeros(14)) for _ in range(20_000)])
    grippers = [6, 13]
    assert not noise[:, grippers].any()
    arms = np.delete(noise, grippers, axis=1)
    np.testing.assert_allclose(arms.std(axis=0), 0.1, rtol=0.08)
    lag_one = (arms[1:] * arms[:-1]).mean(axis=0) / arms.var(axis=0)
    np.testing.assert_allclose(lag_one, NOISE_CORRELATION, atol=0.03)


def test_the_noise_never_leaves_the_action_space():
    disturbance = Disturbance(1.0, 7, np.random.default_rng(0))
    noisy = np.array([disturbance.added_to(np.full(7, 0.9)) for _ in range(100)])
    assert np.abs(noisy).max() == 1.0
