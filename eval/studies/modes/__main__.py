"""What exactness buys where a policy has two ways: a Panda's hand passes rows of posts, each to the
left or to the right.

    python -m asd_policy.eval.studies.modes demos
    python -m asd_policy.eval.studies.modes train
    python -m asd_policy.eval.studies.modes measure
    python -m asd_policy.eval.studies.modes show --figure modes.png

The same command goes on where it was stopped. It wants the extra `sim`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from asd_policy.eval.script import run_script


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status, as ``run_script``."""
    return run_script("modes", ("demos", "train", "measure", "show"), __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
