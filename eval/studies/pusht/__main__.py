"""PushT by LeRobot: a scripted expert demonstrates, lerobot-train trains, samplers play the same
seeds in LeRobot's own rollouts.

    python -m asd_policy.eval.studies.pusht demos
    python -m asd_policy.eval.studies.pusht train
    python -m asd_policy.eval.studies.pusht compare

The same command goes on where it was stopped. It wants an environment with LeRobot
(asd_policy/integrations/README.md) and, of this package's `sim` extra, pydantic, annotated-types,
scipy, tyro and rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tyro

from asd_policy.console import say
from asd_policy.errors import AsdPolicyError


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's, 130 stopped by Ctrl-C."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on this disk
    from asd_policy.eval.studies.pusht.compare import compare
    from asd_policy.eval.studies.pusht.demos import demos
    from asd_policy.eval.studies.pusht.train import train

    commands = {"demos": demos, "train": train, "compare": compare}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=words, description=__doc__)
    except AsdPolicyError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("Stopped; the same command goes on.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
