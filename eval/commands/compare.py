"""`asd-policy compare`. Importing this is quick: the statistics come when it starts."""

from __future__ import annotations

from typing import Annotated

import tyro

from asd_policy.eval.studies.compare.options import CompareOptions


def main_compare(options: Annotated[CompareOptions, tyro.conf.arg(name="")]) -> int:
    """Compare two evaluations, or two samplers of one, on the seeds that both have done.

    Success is compared by McNemar's test, the interval of the difference, and two one-sided tests
    of whether the first is worse than the second by more than --margin; cost by ratios of latency
    and of network calls with bootstrap intervals. It takes two recordings of robomimic's rollouts
    too (`run_trained_agent --record FILE`), and compares success alone.

    With --until-decided more seeds are run, a few at a time, until it is decided or --budget of
    them are done. All that counts then is valid however often one looks: an e-value for each
    hypothesis (20 refuses it at 5%), and an interval that holds at every number of seeds.

    Exit status 0: the first is not worse within the margin; 1: it is worse by more than the margin;
    2: too few episodes to tell (or an error of use, which starts with "error:").
    """
    if len(options.runs) == 2 and all(path.is_file() for path in options.runs):
        from asd_policy.eval.studies.compare.recordings import compare_recordings

        return compare_recordings(options)
    from asd_policy.eval.studies.compare.run import run_compare

    if options.until_decided:
        from asd_policy.eval.studies.compare.decide import continue_until_decided

        return continue_until_decided(options)
    return run_compare(options)
