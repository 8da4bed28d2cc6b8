"""Tests of chunks as vectors: what each of them sees, and that others do not."""

import numpy as np
import pytest

from asd_policy.eval.studies.verify.equality import compare, permutations_needed
from asd_policy.eval.studies.verify.whole_chunks import (
    WHOLE_CHUNK_TESTS,
    permutation_p,
    whole_chunk_tests,
)

STRATA, N, D = 2, 600, 10


def normal(rng, n=N):
    return rng.normal(size=(STRATA, n, D))


def p_values(ours, theirs, seed=0):
    rng = np.random.default_rng(seed)
    return {test.name: test.p_value for test in whole_chunk_tests(ours, theirs, 3000, rng)}


def least(found, part):
    return min(p for name, p in found.items() if part in name)


def test_equal_laws_are_equal_and_the_number_of_tests_is_stated():
    rng = np.random.default_rng(0)
    found = p_values(normal(rng), normal(rng, 500))
    assert len(found) == WHOLE_CHUNK_TESTS
    assert min(found.values()) > 0.01


def test_a_small_shift_of_many_numbers_is_one_of_the_mean():
    """No number alone moves by more than 0.09 of its standard deviation, at each observation
    another way."""
    rng = np.random.default_rng(1)
    ways = 0.09 * rng.choice([-1, 1], size=(STRATA, 1, D))
    found = p_values(normal(rng, 2000) + ways, normal(rng, 2000))
    assert found["mean vector"] < 0.002
    assert found["second moments"] > 0.01


def test_a_correlation_is_one_of_the_second_moments():
    rng = np.random.default_rng(2)
    ours = normal(rng)
    ours[..., 1] = 0.3 * ours[..., 0] + np.sqrt(1 - 0.3**2) * ours[..., 1]
    found = p_values(ours, normal(rng))
    assert found["second moments"] < 0.002
    assert found["mean vector"] > 0.01


def test_a_mode_of_a_two_hundredth_is_rare_chunks():
    """Five in a thousand chunks are elsewhere, inside the hull of all numbers' ranges."""
    rng = np.random.default_rng(3)
    ours, theirs = normal(rng, 2000), normal(rng, 2000)
    ours[:, :10] = 0.1 * ours[:, :10] + 2.2 * np.where(np.arange(D) % 2, 1.0, -1.0)
    found = p_values(ours, theirs)
    assert least(found, "rare chunks") < 0.002
    assert found["energy distance"] > 0.01
    names = [f"action[{i}], mean of the chunk" for i in range(D)]
    others = compare(ours[..., None, :], theirs[..., None, :], None, 0.05, 0)
    assert min(test.p_value for test in others if test.name in names) > 0.01


def test_as_many_rare_chunks_at_other_places_are_told_apart():
    rng = np.random.default_rng(4)
    ours, theirs = normal(rng, 3000), normal(rng, 3000)
    ours[:, :24], theirs[:, :24] = (0.1 * x[:, :24] for x in (ours, theirs))
    ours[:, :24, 0] += 7.0
    theirs[:, :24, 1] += 7.0
    found = p_values(ours, theirs)
    assert found["rare chunks, nearest neighbours"] < 0.002
    assert found["rare chunks, far from the mean"] > 0.01


def test_atoms_and_constants():
    rng = np.random.default_rng(5)
    ours, theirs = (np.sign(normal(rng)) for _ in range(2))
    ours[..., 0] = theirs[..., 0] = 0.25
    assert min(p_values(ours, theirs).values()) > 0.01
    same = np.zeros((STRATA, 20, D))
    assert set(p_values(same, same).values()) == {1.0}


def test_a_permutation_p_value_by_hand():
    values = iter([0.0, 3.0, 1.0, 2.0])

    def drawn(count):
        return np.array([next(values) for _ in range(count)])

    assert permutation_p(2.0, drawn, 4, at_once=2) == pytest.approx((2 + 1) / (4 + 1))


@pytest.mark.statistical
@pytest.mark.parametrize("atoms", [False, True])
def test_each_has_its_level(atoms):
    """One law against itself, 200 times at 10 %: 20 are expected of each, 8 to 35 hold with
    probability 99.8 %; discrete ones may have fewer."""
    rng = np.random.default_rng(6)
    hits = dict.fromkeys(p_values(normal(rng, 40), normal(rng, 40)), 0)
    for i in range(200):
        ours, theirs = (np.sign(x) if atoms else x for x in (normal(rng, 60), normal(rng, 40)))
        rng_ = np.random.default_rng(i)
        for test in whole_chunk_tests(ours, theirs, permutations_needed(1, 0.05), rng_):
            hits[test.name] += test.p_value <= 0.1
    print(hits)
    assert max(hits.values()) <= 35
    assert min(hits[name] for name in ("energy distance", "mean vector", "second moments")) >= 8
