"""LeRobot's own commands, with policies accelerated as they are loaded.

    python -m asd_policy.integrations.lerobot eval --sampler asd --policy.path=CKPT --env.type=pusht
    python -m asd_policy.integrations.lerobot rollout --sampler asd --policy.path=CKPT …
    python -m asd_policy.integrations.lerobot record --sampler asd --policy.path=CKPT …
    python -m asd_policy.integrations.lerobot policy_server --sampler asd --port=8080

Options are those of lerobot-eval, lerobot-rollout (LeRobot 0.6), lerobot-record (0.4 runs policies,
0.6 has rollout for that) and of LeRobot's asynchronous policy server. There are six more:
--sampler NAME (asd, asd-paper, ddpm, ddim-10 …; auto is asd, and a DDIM checkpoint's own chain;
without it, LeRobot's own loop runs), --window N, --steps N, --engine NAME, --precision NAME, and
--check, which compares with LeRobot's own loop before anything moves.
Checkpoints of type asd_diffusion are known here without the plugin lerobot_policy_asd.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from asd_policy.errors import AsdPolicyError, InputError, IntegrationError, say_to_user
from asd_policy.leaving import process_of

# The command's module, its function, and what loads a policy.
COMMANDS = {
    "eval": ("lerobot.scripts.lerobot_eval", "main", "lerobot.scripts.lerobot_eval.make_policy"),
    "rollout": (
        "lerobot.scripts.lerobot_rollout", "main", "lerobot.rollout.context._load_pretrained_policy"
    ),
    "record": (
        "lerobot.scripts.lerobot_record", "main", "lerobot.scripts.lerobot_record.make_policy"
    ),
    "policy_server": ("lerobot.async_inference.policy_server", "serve", ""),
}  # fmt: skip
_EXTRAS = {
    "eval": "evaluation", "rollout": "core_scripts", "record": "core_scripts",
    "policy_server": "async",
}  # fmt: skip
_ELSEWHERE = {
    "rollout": "which 0.6 has: a LeRobot 0.4 runs policies on robots by record",
    "record": "which 0.4 has: lerobot-record of 0.6 runs no policy, and rollout does "
    "(--strategy.type=episodic)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 2 for a mistake of the user's, said in one sentence."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        options, rest = _options(words[1:])
        return _run(words[0], options, rest)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return say_to_user(_cause(error), f"LeRobot's {words[0]}")


def _cause(error: BaseException) -> BaseException:
    """What a user can act on: our error, where LeRobot's parser of settings has wrapped it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, AsdPolicyError):
        found = found.__cause__
    return found or error


def _options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Keywords of ``accelerate`` that were given, and the words that are left for LeRobot."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("sampler", "engine", "precision"):
        parser.add_argument(f"--{name}")
    for name in ("window", "steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--check", action="store_const", const=True)
    ours, rest = parser.parse_known_args(words)
    options = {name: value for name, value in vars(ours).items() if value is not None}
    if options and "sampler" not in options:
        raise InputError(f"expected --sampler NAME beside --{' and --'.join(options)}; got none")
    return options, rest


def _run(name: str, options: dict[str, Any], rest: Sequence[str]) -> int:
    from asd_policy.integrations.lerobot.loading import check_options, loader, readable, replaced
    from asd_policy.integrations.lerobot.policy_type import register

    check_options(options)
    register()
    module, function, loads = COMMANDS[name]
    command = _imported(name, module)
    if name == "policy_server":
        return _serve(command, options, rest)
    if not options:
        return _call(command, function, name, rest)
    where, _, load = loads.rpartition(".")
    place = _imported(name, where)
    if not hasattr(place, load):
        raise IntegrationError(f"this LeRobot has no {loads}, {_elsewhere(name)}")
    with (
        readable(rest) as words,
        replaced(place, load, loader(getattr(place, load), options)),
    ):
        return _call(command, function, name, words)


def _serve(command: ModuleType, options: dict[str, Any], rest: Sequence[str]) -> int:
    from asd_policy.integrations.lerobot.loading import replaced
    from asd_policy.integrations.lerobot.server import PolicyServer, supported

    with (
        replaced(command, "PolicyServer", partial(PolicyServer, options=options)),
        replaced(command, "SUPPORTED_POLICIES", supported()),
    ):
        return _call(command, COMMANDS["policy_server"][1], "policy_server", rest)


def _call(command: ModuleType, function: str, name: str, rest: Sequence[str]) -> int:
    own = sys.argv
    sys.argv = [f"lerobot-{name}", *rest]  # which LeRobot reads in several places
    try:
        getattr(command, function)()
    finally:
        sys.argv = own
    return 0


def _elsewhere(name: str) -> str:
    return _ELSEWHERE.get(name, "and is not one of 0.4.4 and 0.6.1, with which this was tested")


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = (error.name or "").partition(".")[0]
        if top == "asd_policy":
            raise
        if isinstance(error, ModuleNotFoundError) and top == "lerobot":
            raise IntegrationError(f"this LeRobot has no {module}, {_elsewhere(name)}") from error
        raise IntegrationError(
            f"LeRobot's {name} needs more than is installed ({error}): "
            f"pip install 'lerobot[{_EXTRAS[name]}]'"
        ) from error


if __name__ == "__main__":
    process_of(main)
