"""`asd-policy compare` from options to exit status."""

from __future__ import annotations

from rich.console import Console

from asd_policy.console import plain_console
from asd_policy.eval.runs.files import check_output_folder, write_json
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.show.tables import print_lines
from asd_policy.eval.studies.compare.options import CompareOptions, check_compare_options
from asd_policy.eval.studies.compare.outcome import WORSE, compare_sides, display_of
from asd_policy.eval.studies.compare.pairing import pairs_of
from asd_policy.eval.studies.compare.tables import print_comparison, print_letters
from asd_policy.files import writing


def run_compare(options: CompareOptions, console: Console | None = None) -> int:
    """Compare, print, and return the exit status: of several comparisons, 1 if any is worse, else
    2 if any could not be told.

    Raises:
        ValueError: what the user can fix.
        OutputError: --json cannot be written.
    """
    check_compare_options(options)
    if options.json is not None:
        check_output_folder(options.json.parent)
    console = console or plain_console()
    how = options.margin, options.seed, options.until_decided
    pairs, among = pairs_of(options), None
    if len(options.samplers) > 2:  # one table, all of it of the seeds that all have done
        among = set.intersection(*({*side.episodes} for pair in pairs for side in pair))
    found = [compare_sides(a, b, *how, among) for a, b in pairs]
    for comparison in found:
        print_comparison(console, comparison)
    display = display_of(options.samplers, found) if len(options.samplers) > 2 else None
    if display is not None:
        print_letters(console, display)
    statuses = [comparison["verdict"]["status"] for comparison in found]
    status = WORSE if WORSE in statuses else max(statuses)
    if options.json is not None:
        with writing(options.json):
            options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema_version": VERSION["compare"], "status": status, "comparisons": found}
        if display is not None:
            content["letters"] = display
        write_json(options.json, content)
        print_lines(console, [f"Kept: {options.json}"])
    return status
