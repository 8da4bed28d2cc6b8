"""Whether episodes of the same seed began with the same scene."""

from __future__ import annotations

from collections.abc import Mapping

from asd_policy.errors import DatasetError

Scenes = Mapping[int, str | None]


def same_scenes(first: Scenes, second: Scenes, together: str) -> int:
    """How many of the seeds that both have are known to have begun with one scene.

    Args:
        first, second: seed → digest of the first observation (`asd_policy.data.scenes`), None where
            it was not kept. together: what to do so that they are the same, for the message.

    Raises:
        DatasetError: some began with different ones.
    """
    known = [s for s in first if first[s] is not None and second.get(s) is not None]
    unequal = [seed for seed in known if first[seed] != second[seed]]
    if unequal:
        raise DatasetError(
            f"{len(unequal)} of {len(known)} common seeds began with different scenes (their first "
            f"observations differ, first of seed {unequal[0]}), so that they cannot be compared "
            f"seed by seed: {together}"
        )
    return len(known)
