"""One demonstration: a pure function of its numbers, aligned row by row."""

import numpy as np
import pytest

from asd_policy.envs.episodes import (
    NOISE_CORRELATION,
    PUSH_STEPS,
    STEPS_AFTER_SUCCESS,
    Disturbance,
    episode_streams,
    run_episode,
)


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


def spans(marks: np.ndarray) -> list[tuple[int, int]]:
    """First and last row of each run of marked ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(int), [0]])))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


@pytest.fixture(scope="module")
def pushed(lift):
    return [run_episode(lift, 0.05, 7, index, interrupt_every=20) for index in range(8)]


def test_pushes_are_marked_and_recovered_from(lift, pushed):
    lengths, moved = [], []
    for episode in pushed:
        assert episode.success
        hand = episode.observations["robot0_eef_pos"]
        for first, last in spans(episode.interrupted):
            if last + 1 == len(episode):
                continue
            lengths.append(last + 1 - first)
            moved.append(np.abs(hand[last + 1] - hand[first]).max())
            commands = episode.executed_action[first : last + 1]
            if lengths[-1] <= PUSH_STEPS[1]:  # else two in a row
                assert (commands == commands[0]).all()
    assert len(lengths) > 6
    assert min(lengths) >= PUSH_STEPS[0]
    assert max(moved) > 0.05
    between = np.concatenate(
        [(e.executed_action - e.action)[~e.interrupted][:, :6].ravel() for e in pushed]
    )
    assert between.std() < 0.1  # a push is nowhere else


def test_interruptions_come_as_often_as_said_and_not_after_success(pushed):
    """Geometric gaps of 20 steps: over these some 250 steps a rate of 0.05 +- 0.014."""
    began = sum(len(spans(episode.interrupted)) for episode in pushed)
    driven = sum(int((~episode.interrupted).sum()) - STEPS_AFTER_SUCCESS for episode in pushed)
    assert driven > 100
    assert 0.01 < began / driven < 0.1
    for episode in pushed:
        assert not episode.interrupted[-STEPS_AFTER_SUCCESS + 1 :].any()


def test_interrupted_episodes_are_functions_of_their_numbers(lift, pushed):
    again = run_episode(lift, 0.05, seed=7, index=0, interrupt_every=20)
    assert np.array_equal(pushed[0].state, again.state)
    plain = run_episode(lift, 0.05, seed=7, index=0)
    first = int(np.argmax(pushed[0].interrupted))
    assert not plain.interrupted.any()
    assert np.array_equal(pushed[0].state[: first + 1], plain.state[: first + 1])


def test_a_learner_drives_in_half_of_the_interruptions(lift):
    """One that pulls the arm up, and stands for every learner; no label is its own."""

    class Upwards:
        seeds, steps = (), 0

        def reset(self, seeds):
            self.seeds = (*self.seeds, seeds)

        def act(self, observation):
            self.steps += 1
            return np.array([0, 0, 0.5, 0, 0, 0, -1])

    learner = Upwards()
    episodes = [run_episode(lift, 0.05, 7, index, 20, learner) for index in range(8)]
    assert sum(episode.success for episode in episodes) > 4
    its = [(e.executed_action == np.float32([0, 0, 0.5, 0, 0, 0, -1])).all(1) for e in episodes]
    assert sum(rows.sum() for rows in its) == learner.steps
    assert len(set(learner.seeds)) == len(learner.seeds) > 2
    for episode, rows in zip(episodes, its, strict=True):
        assert episode.interrupted[rows].all()
        assert (episode.action[rows, 2] < 0.5).any() or not rows.any()
    pushes = sum(int((e.interrupted & ~rows).any()) for e, rows in zip(episodes, its, strict=True))
    assert pushes > 1


def test_an_interruption_that_loses_the_cube_is_undone(lift):
    """A learner that throws it off the table: no row of that is kept, and what is kept hangs
    together."""

    class Thrower:
        thrown = 0

        def reset(self, seeds):
            self.thrown += 1

        def act(self, observation):
            q = lift.simulation.sim.data
            q.set_joint_qpos("cube_joint0", np.array([0.8, 0.8, 0.6, 1, 0, 0, 0]))
            return np.zeros(7)

    learner = Thrower()
    for index in range(4):
        episode = run_episode(lift, 0.05, 7, index, 12, learner)
        assert (episode.observations["object"][:, 2] > 0.7).all()
        assert np.diff(episode.state[:, 0]).max() == pytest.approx(0.05, abs=1e-6)
        hand = episode.observations["robot0_eef_pos"]
        assert np.abs(np.diff(hand, axis=0)).max() < 0.06
    assert learner.thrown > 1


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
