"""Whether two draws are one, but for how their arithmetic was summed."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same_draws(got: Any, expected: Any) -> None:
    """Of the same noise and conditions, in batches of other sizes or by other kernels.

    Such sums differ in their last bits, 1e-7, and a rejection reflects about the direction from
    target to draft: of a draft that was nearly right, that direction is good to few digits. Of 320
    runs of a dozen actions the median differed by 1e-6, one by 4e-5, and one in CI by 1.6e-4.
    Another seed's actions, or another observation's, differ by tenths.
    """
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.01)
