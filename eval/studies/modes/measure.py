"""Chunks and episodes of each sampler, kept in one file that can be gone on with."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asd_policy.console import plain_console, say
from asd_policy.data.replay import load_npz
from asd_policy.envs.requirements import installed_version
from asd_policy.errors import InputError
from asd_policy.eval.options import HELD_OUT_SEED
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.modes import Known, ModesEpisode, Swings
from asd_policy.eval.runs.schemas import read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.modes import law
from asd_policy.eval.studies.modes.board import ROWS, Board
from asd_policy.eval.studies.modes.demos import DEMOS, OUT
from asd_policy.eval.studies.modes.known import CASES, Case, count, same
from asd_policy.eval.studies.modes.play import play
from asd_policy.eval.studies.modes.samplers import DRAWN, PLAYED, load
from asd_policy.eval.studies.modes.show import print_findings
from asd_policy.eval.studies.modes.summary import summarize
from asd_policy.eval.studies.modes.train import POLICY
from asd_policy.files import claimed
from asd_policy.policy import DiffusionPolicy
from asd_policy.progress import Stage
from asd_policy.threads import limited_to

Json = dict[str, Any]
BLOCK = 100  # chunks drawn together


def measure(
    out: Path = OUT, file: Path | None = None, exact: int = 5000,
    chunks: int = 2000, episodes: int = 200,
    drawn: tuple[str, ...] = DRAWN, played: tuple[str, ...] = PLAYED,
) -> None:  # fmt: skip
    """Draw chunks before each row, play episodes, and print the tables of all that are kept.

    Args:
        out: Folder of all three steps.
        file: JSON file of the results, to begin or to go on with; left out, <out>/modes.json.
        exact: Chunks of each sampler by the network that makes no errors, in each case.
        chunks: Chunks of each sampler before each row, in hundreds, which are drawn together.
        episodes: Seeds of each sampler.
        drawn: Samplers of which chunks are drawn.
        played: Samplers of which episodes are played.
    """
    file = file or out / "modes.json"
    if exact < 1 or chunks < 0 or episodes < 0:
        raise InputError(
            f"--exact takes numbers from 1 on, --chunks and --episodes from 0; got {exact}, "
            f"{chunks}, {episodes}"
        )
    if chunks % BLOCK:
        raise InputError(
            f"--chunks takes multiples of {BLOCK}, which are drawn together; got {chunks}"
        )
    if not (out / POLICY / "card.json").is_file():
        raise InputError(f"{out / POLICY} holds no policy; `train` makes one")
    with claimed(file.parent), limited_to(1):
        kept = Kept(file, out)
        kept.count(drawn, exact)
        kept.draw(drawn, chunks)
        kept.play(played, episodes)
    print_findings(plain_console(), kept.content)
    say(f"Kept: {file}")


class Kept:
    """The file of results, and what makes more of them."""

    def __init__(self, file: Path, out: Path) -> None:
        self.file, self._policy = file, out / POLICY
        self._policies: dict[str, DiffusionPolicy] = {}
        horizon = self.policy("ddpm").config
        actions = horizon.pred_horizon - horizon.obs_horizon + 1
        self._rows, taught = law.demonstrated(out / DEMOS, actions)
        self._settings = self._describe(out)
        self.swings: dict[tuple[str, int], Swings] = {}
        self.known: list[Known] = []
        self.episodes: list[ModesEpisode] = []
        for each in taught:
            self.swings[each["sampler"], each["row"]] = each
        if file.exists():
            there = read_json(file, "modes")
            check_same(file, there["settings"], self._settings)
            self.swings |= {(each["sampler"], each["row"]): each for each in there["swings"]}
            self.known, self.episodes = there["known"], there["episodes"]

    def policy(self, sampler: str) -> DiffusionPolicy:
        """The policy with this sampler."""
        if sampler not in self._policies:
            self._policies[sampler] = load(self._policy, sampler)
        return self._policies[sampler]

    @property
    def content(self) -> Json:
        """Of the file."""
        edges = law.EDGES.tolist()
        swings = list(self.swings.values())
        return summarize(self._settings, self.known, self._rows, edges, swings, self.episodes)

    def count(self, samplers: tuple[str, ...], chunks: int) -> None:
        """Draw chunks by the network that makes no errors, where there are fewer yet."""
        todo = [
            (case, sampler)
            for case in CASES
            for sampler in samplers
            if self._counted(case, sampler) < chunks
        ]
        with Stage("cases of an exact network", len(todo), show=bool(todo)) as stage:
            for i, (case, sampler) in enumerate(todo, start=1):
                first = first_seed(sampler, len(ROWS) + CASES.index(case))
                fewer = [found for found in self.known if same(case, sampler, found)]
                self.known.append(count(case, sampler, chunks, first))
                for found in fewer:
                    self.known.remove(found)
                write_json(self.file, self.content)
                stage.update(i, sampler)

    def _counted(self, case: Case, sampler: str) -> int:
        return sum(sum(found["counts"]) for found in self.known if same(case, sampler, found))

    def draw(self, samplers: tuple[str, ...], chunks: int) -> None:
        """Draw what is missing of so many chunks before each row."""
        todo = list(self._blocks(samplers, chunks))
        if not todo:
            return
        histories = law.ambiguous(self.policy("ddpm"))
        with Stage("blocks of chunks", len(todo)) as stage:
            for i, (sampler, row, block) in enumerate(todo, start=1):
                # Each sampler's chunks are independent of the others': equal seeds would make
                # those of two DDIMs alike, and a difference hard to judge.
                first = first_seed(sampler, row) + block * BLOCK
                swings = law.draw(self.policy(sampler), histories[row], range(first, first + BLOCK))
                new = law.counts(sampler, row, swings, self._rows[row])
                there = self.swings.get((sampler, row))
                self.swings[sampler, row] = law.added(there, new) if there else new
                write_json(self.file, self.content)
                stage.update(i, f"{sampler}, row {row}")

    def _blocks(self, samplers: tuple[str, ...], chunks: int) -> Iterator[tuple[str, int, int]]:
        for block in range(chunks // BLOCK):
            for row in range(len(ROWS)):
                for sampler in samplers:
                    there = self.swings.get((sampler, row))
                    done = sum(there["histogram"]) if there else 0
                    if block * BLOCK >= done:
                        yield sampler, row, block

    def play(self, samplers: tuple[str, ...], episodes: int) -> None:
        """Play what is missing of so many seeds."""
        done = {(e["sampler"], e["seed"]) for e in self.episodes}
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + episodes)
        todo = [(s, seed) for seed in seeds for s in samplers if (s, seed) not in done]
        if not todo:
            return
        board = Board()
        with Stage("episodes", len(todo)) as stage:
            for i, (sampler, seed) in enumerate(todo, start=1):
                self.episodes.append(play(board, self.policy(sampler), sampler, seed))
                write_json(self.file, self.content)
                stage.update(i, f"{sampler}, seed {seed}")

    def _describe(self, out: Path) -> Json:
        card = self.policy("ddpm").card
        return {
            "policy_sha256": card["sha256"],
            "parameters": self.policy("ddpm").parameters,
            "training_steps": card["recipe"]["steps"],
            "demonstrations": len(load_npz(out / DEMOS).episode_ends),
            "first_seed": HELD_OUT_SEED,
            "versions": {
                name: installed_version(name) for name in ("torch", "mujoco", "robosuite")
            },
        }


def first_seed(sampler: str, row: int) -> int:
    """Of a sampler's chunks before a row: a million away from any other's."""
    return zlib.crc32(f"{sampler} {row}".encode()) * 1_000_000
