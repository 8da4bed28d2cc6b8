"""What the README files show runs as written, and what they link to is there."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import asd_policy

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="needs the checkout")
TINY = ["--steps", "2", "--batch-size", "4", "--down-dims", "8", "16", "--diffusion-steps", "4"]


def pages() -> list[Path]:
    """Every page of the project that is written in Markdown."""
    folders = [ROOT / name for name in ("asd_policy", "envs", "eval", "checkpoints")]
    return [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(page: str, section: str, *names: str) -> list[list[str]]:
    """Words of each `asd-policy NAME ...` line in a section."""
    part = re.split(r"\n## ", text(page).split(f"\n## {section}\n")[1])[0]
    lines = re.findall(r"^    asd-policy .*$", part, re.MULTILINE)
    words = [shlex.split(line, comments=True)[1:] for line in lines]
    return [line for line in words if line[0] in names]


def tiny(words: list[str]) -> list[str]:
    """The same command with a hundredth of the episodes, and next to no training."""
    if words[0] == "train":
        return [*words, *TINY]
    if words[0] == "eval":
        return [*words, "--episodes", "1", "--horizon", "8"]
    fewer = [re.sub(r"^(\d+)00$|^(\d)50$", _hundredth, word) for word in words]
    return [*fewer, "--workers", "1"]


def _hundredth(match: re.Match[str]) -> str:
    return str(-(-int(match[0]) // 100))


def write_mine(folder: Path) -> None:
    """Demonstrations of a reader's own robot, which moves in pixels."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(folder / "mine.zarr"), mode="w")
    rows = np.random.default_rng(0).uniform(0, 512, size=(30, 6)).astype(np.float32)
    root["data/state"], root["data/goal"], root["data/action"] = (
        rows[:, :3],
        rows[:, 3:],
        rows[:, :2],
    )
    root["meta/episode_ends"] = np.array([12, 30])


def test_demonstrations_and_training_run_in_a_fresh_folder(run, tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("robosuite")
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import choose_backend
    from asd_policy.training import collect

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect, "EPISODES", 1)
    lines = commands_in("envs/README.md", "Demonstrations and training", "demos", "train")
    assert len(lines) >= 6
    write_mine(tmp_path)
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
    shutil.rmtree(tmp_path / "mine.zarr")
    stores = sorted(path for path in tmp_path.rglob("*.zarr"))
    episodes = {
        path.stem: zarr.open_group(str(path), mode="r").attrs["episodes"] for path in stores
    }
    assert episodes == {"led": 1, "lift": 3, "pushed": 1}
    for name in ("lift", "mine"):
        assert (tmp_path / f"outputs/train/{name}/card.json").is_file()
    assert (tmp_path / "lift.png").is_file()
    assert (tmp_path / "lift.mp4").is_file() == films


def test_your_data_becomes_a_policy_that_is_evaluated(run, tmp_path, monkeypatch):
    pytest.importorskip("robosuite")
    monkeypatch.chdir(tmp_path)
    write_mine(tmp_path)
    lines = commands_in("README.md", "With your policy", "demos", "train", "eval")
    assert [words[0] for words in lines] == ["train", "demos", "train", "eval"]
    for words in lines:
        status, said, errors = run(*tiny(words))
        assert status == 0, (words, said, errors)
    policy = asd_policy.DiffusionPolicy.load("outputs/train/mine")
    policy.reset(0)
    assert policy.act({"state": np.full(3, 256.0), "goal": np.full(3, 9.0)}).shape == (2,)


SHOWN = "".join(map(text, ("README.md", "envs/README.md"))) if pages() else ""
BLOCKS = re.findall(r"```python\n(.*?)```", SHOWN, re.DOTALL)


# What a block is about, by what it imports: the file that it reads is made beforehand.
OTHERS = ("robomimic", "lerobot", "diffusion_policy")


def about(block: str) -> str:
    """Another package that a block needs; "ours" where it needs none."""
    return next((name for name in OTHERS if f"integrations.{name} " in block), "ours")


def prepare(name: str, run, folder: Path) -> None:
    if name == "robomimic":
        [words] = commands_in("README.md", "With your policy", "export")
        assert run()(*words)[0] == 0
    elif name == "lerobot":
        import asd_policy.integrations.lerobot  # noqa: F401  (first, as the block says)
        from reference.lerobot_policies import saved, trained

        saved(trained(), folder / "pretrained_model")
    elif name == "diffusion_policy":
        packed = ROOT / "tests/data/diffusion_policy.ckpt.gz"
        (folder / "latest.ckpt").write_bytes(gzip.decompress(packed.read_bytes()))


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=f"{about(b)}-{n}") for n, b in enumerate(BLOCKS)]
)
def test_python_runs_as_written(block, request, tmp_path, monkeypatch):
    name = about(block)
    pytest.importorskip("robosuite" if name == "ours" else name)
    monkeypatch.chdir(tmp_path)
    prepare(name, lambda: request.getfixturevalue("run"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", block],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if name in ("lerobot", "diffusion_policy"):
        assert "asd-policy: asd on a DDPM of 100 steps" in done.stdout


def test_a_file_of_diffusion_policy_becomes_a_policy_of_ours(run, tmp_path, monkeypatch):
    pytest.importorskip("tyro")
    monkeypatch.chdir(tmp_path)
    prepare("diffusion_policy", run, tmp_path)
    [words] = commands_in("README.md", "With your policy", "convert")
    status, said, errors = run(*words)
    assert status == 0, errors
    assert (tmp_path / words[-1] / "card.json").is_file(), said


def test_the_blocks_on_your_policy_are_its_four_ways_in():
    part = text("README.md").split("\n## With your policy\n")[1].split("\n**Your data**")[0]
    blocks = [block for block in BLOCKS if block in part]
    assert [about(block) for block in blocks] == ["ours", *OTHERS]
    assert "class Network(torch.nn.Module)" in blocks[0]


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", name.lower()).replace(" ", "-") for name in found}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve()
        assert target.exists(), link
        assert not heading or heading in headings(target), link
