"""The README's commands run as written, one after the other."""

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the checkout")
TINY = ["--steps", "2", "--batch-size", "4", "--down-dims", "8", "16", "--diffusion-steps", "4"]


def commands_of(section: str, *names: str) -> list[list[str]]:
    """Words of each `asd-policy NAME ...` line in the first block of a section."""
    block = (
        README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].lstrip().split("\n\n")[0]
    )
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    return [words for words in lines if words and words[0] in names]


def tiny(words: list[str]) -> list[str]:
    """The same command with a hundredth of the episodes, and next to no training."""
    if words[0] == "train":
        return [*words, *TINY]
    fewer = [re.sub(r"^(\d+)00$|^(\d)50$", _hundredth, word) for word in words]
    return [*fewer, "--workers", "1"]


def _hundredth(match: re.Match[str]) -> str:
    return str(-(-int(match[0]) // 100))


def test_demonstrations_and_training_run_in_a_fresh_folder(run, tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("robosuite")
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import choose_backend
    from asd_policy.training import collect

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect, "EPISODES", 1)
    lines = commands_of("Commands", "demos", "train")
    assert len(lines) >= 5
    assert sum("--render" in words for words in lines) == 1
    try:
        choose_backend()
        films = True
    except DependencyNotInstalled:
        films = False
    for words in lines:
        words = tiny(words)
        if not films and "--render" in words:
            at = words.index("--render")
            words = words[:at] + words[at + 2 :]
        status, said, errors = run(*words)
        assert status == 0, (words, said, errors)
    stores = sorted(path for path in tmp_path.rglob("*.zarr"))
    episodes = {
        path.stem: zarr.open_group(str(path), mode="r").attrs["episodes"] for path in stores
    }
    assert episodes == {"led": 1, "lift": 3, "pushed": 1}
    assert (tmp_path / "outputs/train/lift/card.json").is_file()
    assert (tmp_path / "lift.png").is_file()
    assert (tmp_path / "lift.mp4").is_file() == films
