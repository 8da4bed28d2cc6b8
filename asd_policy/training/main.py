"""``asd-policy train``: from a demonstration store to a checkpoint folder."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import arg

from asd_policy.console import plain_console
from asd_policy.data.replay import Replay, join, too_short
from asd_policy.device import resolve_device
from asd_policy.envs.tasks import Task, get_task
from asd_policy.errors import CheckpointError, InputError, OutputExistsError, counted
from asd_policy.files import check_only_ours, check_writable, claimed
from asd_policy.networks import TransformerSizes
from asd_policy.policy.checkpoint import CARD_FILE, load_checkpoint, save_checkpoint
from asd_policy.policy.config import PolicyConfig
from asd_policy.progress import Stage
from asd_policy.schedule import Schedule, check_choice
from asd_policy.training.demonstrations import data_card, load_demonstrations, load_own
from asd_policy.training.trainer import Report, TrainConfig, Trainer

STATE_FILE = "train_state.pt"
DOWN_DIMS = (48, 96, 192)


def main_train(
    task: Annotated[str | None, arg(metavar="NAME")] = None,
    observations: Annotated[tuple[str, ...], arg(metavar="KEY [KEY ...]")] = (),
    data: Annotated[tuple[Path, ...], arg(metavar="PATH [PATH ...]")] = (),
    filter_key: Annotated[str | None, arg(metavar="NAME")] = None,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    steps: int = 5_000,
    batch_size: int = 128,
    learning_rate: float = 6e-4,
    down_dims: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]")] = (),
    step_embed_dim: Annotated[int | None, arg(metavar="INT")] = None,
    transformer: Annotated[tuple[int, int, int] | None, arg(metavar="LAYERS HEADS WIDTH")] = None,
    diffusion_steps: int = 100,
    action_horizon: Annotated[int, arg(metavar="INT")] = PolicyConfig.action_horizon,
    rotations: Annotated[str, arg(metavar="{quaternion,matrix}")] = "quaternion",
    seed: int = 0,
    precision: Annotated[str, arg(metavar="{fp32,bf16}")] = "fp32",
    device: Annotated[str, arg(metavar="DEVICE")] = "auto",
    threads: Annotated[int | None, arg(metavar="INT")] = None,
    keep: int = 0,
    start_from: Annotated[Path | None, arg(metavar="NAME|DIR")] = None,
    resume: bool = True,
) -> None:
    """Train a diffusion policy on demonstrations, with low-dimensional observations.

    The network predicts the noise ε of a squaredcos_cap_v2 DDPM; the checkpoint holds the
    exponential moving average of its weights. A run that was interrupted goes on where it was.

    Args:
        task: The task, whose observation keys and action size the policy takes; None is lift.
        observations: For a robot of your own, in place of a task: the observations of --data that
            the policy is given, in this order. Its actions may have any units.
        data: Where the demonstrations are: zarr stores (folders, or .zarr.zip) of `asd-policy
            demos` or in Chi et al.'s layout, the same as one file (.npz, `python eval/gpu.py
            --export`), or robomimic's low-dimensional datasets (.hdf5). Several are taken together.
            None is outputs/demos/<task>.zarr.
        filter_key: The mask of a robomimic dataset whose episodes are read ("train"); None reads
            all.
        out: The checkpoint folder to write; None is outputs/train/<task>, or of --observations
            outputs/train/<the first data's name>.
        steps: How many steps the optimizer takes.
        batch_size: How many windows a step is made on.
        learning_rate: The highest learning rate, after a warm-up; a cosine takes it to zero.
        down_dims: The channels of the U-Net's resolutions; none named: 48 96 192.
        step_embed_dim: The length of the embedding of the U-Net's timestep; None is 64.
        transformer: Train Chi et al.'s transformer in place of the U-Net: layers, heads and width.
            Theirs is 8 4 256, 9 M parameters, with a learning rate of 1e-4; it is sampled in fp32,
            by PyTorch. None is the U-Net.
        diffusion_steps: K, the steps of the DDPM.
        action_horizon: How many actions of a chunk of 16 the policy executes before it looks again
            and draws the next, 1 to 15. Fewer help where it touches things; each takes a chunk.
        rotations: How the network sees rotations: as quaternions, as they are observed, or as
            matrices (robomimic cannot take such a policy).
        seed: Seed of weights, batches and noise.
        precision: What the network computes in; bf16 (weights stay float32) is faster where the
            processor has it.
        device: Where it is trained: auto (a GPU where there is one), cpu, cuda, cuda:1.
        threads: How many CPU threads are used; None is PyTorch's own number.
        keep: Also keep the averaged network of the last N tenths of the training, in
            `out`/step-<number>: is the last one a lucky one?
        start_from: Begin with the weights of this checkpoint, of the same shape, in place of random
            ones (fine-tuning, on the same demonstrations or on others of the task).
        resume: Start over where `out` holds an unfinished run, in place of going on with it.
    """
    spec = _task(task, observations, data, rotations)
    device = resolve_device(device)
    stores = data or (Path("outputs/demos") / f"{spec and spec.name}.zarr",)
    out = out or Path("outputs/train") / (spec.name if spec else _named(stores[0]))
    _check(threads, seed, out)
    replay = join([_load(store, spec, observations, filter_key) for store in stores])
    if threads is not None:
        torch.set_num_threads(threads)
    longest = PolicyConfig.pred_horizon - PolicyConfig.obs_horizon + 1
    if not 1 <= action_horizon <= longest:
        raise InputError(f"--action-horizon must be 1 to {longest}, got {action_horizon}")
    if not 0 <= keep <= 10:
        raise InputError(f"--keep takes 0 to 10 models, got {keep}")
    with _options_named():
        policy = PolicyConfig(
            observation_keys={k: v.shape[1] for k, v in replay.observations.items()},
            action_dim=replay.actions.shape[1],
            action_horizon=action_horizon,
            quaternions=spec.quaternions if spec and rotations == "matrix" else (),
            **_network(down_dims, step_embed_dim, transformer),
        )
        _check_norms(policy)
        config = TrainConfig(steps, batch_size, learning_rate, seed=seed, precision=precision)
        schedule = Schedule.ddpm(diffusion_steps)
        start = None if start_from is None else load_checkpoint(start_from)
        trainer = Trainer(replay, policy, schedule, config, device, start)
    marks = {steps * tenth // 10 for tenth in range(11 - keep, 11)} - {0}
    with claimed(out):
        _train(spec.name if spec else None, trainer, replay, out, resume, marks)


def _named(store: Path) -> str:
    """What demonstrations are called: their file's name without what says its form."""
    return re.sub(r"\.(zarr|zarr\.zip|zip|npz|hdf5|h5)$", "", store.absolute().name)


def _task(
    task: str | None, observations: Sequence[str], data: Sequence[Path], rotations: str
) -> Task | None:
    """The task, or None where the robot is the user's own."""
    check_choice("rotations", rotations, ("matrix", "quaternion"))
    if not observations:
        return get_task(task or "lift")
    for given, text in (
        (task is not None, "--observations are of a robot of your own; leave --task out"),
        (not data, "--observations are of a robot of your own, expected its --data"),
        (rotations == "matrix", "--rotations matrix is for tasks, whose quaternions are known"),
        (len(set(observations)) < len(observations), "--observations names one of them twice"),
    ):
        if given:
            raise InputError(text)
    return None


def _load(
    store: Path, task: Task | None, observations: Sequence[str], filter_key: str | None
) -> Replay:
    if task is None:
        return load_own(store, observations, filter_key)
    return load_demonstrations(store, task, filter_key)


@contextmanager
def _options_named() -> Iterator[None]:
    """In errors about what was asked for, options are called as on the command line."""
    options = "|".join(inspect.signature(main_train).parameters)
    try:
        yield
    except InputError as error:
        named = re.sub(rf"^((?:each of )?)({options})\b", _as_option, str(error))
        if named == str(error):
            raise
        raise InputError(named) from error


def _as_option(found: re.Match[str]) -> str:
    return found[1] + "--" + found[2].replace("_", "-")


def _network(
    down_dims: tuple[int, ...],
    step_embed_dim: int | None,
    transformer: tuple[int, int, int] | None,
) -> dict[str, Any]:
    if transformer is None:
        embed = 64 if step_embed_dim is None else step_embed_dim
        return {"down_dims": down_dims or DOWN_DIMS, "step_embed_dim": embed}
    if down_dims or step_embed_dim is not None:
        raise InputError("--down-dims and --step-embed-dim are a U-Net's; --transformer is none")
    return {"transformer": TransformerSizes(*transformer)}


def _check_norms(policy: PolicyConfig) -> None:
    """PyTorch refuses, when one row is sampled, norms that it took in a batch."""
    left = policy.pred_horizon // 2 ** (len(policy.down_dims) - 1)
    if policy.transformer is None and left == 1 and policy.down_dims[-1] <= policy.n_groups:
        raise InputError(
            f"{len(policy.down_dims)} resolutions leave one action of {policy.pred_horizon}, whose "
            f"channels must be more than n_groups={policy.n_groups}, got {policy.down_dims[-1]}: "
            "a norm of single numbers is always 0"
        )


def _train(
    task: str | None, trainer: Trainer, replay: Replay, out: Path, resume: bool,
    marks: Collection[int],
) -> None:  # fmt: skip
    """Train to the end, and write the checkpoint to `out`, those of the steps in `marks` below."""
    state_file = _prepare(out, trainer, resume)
    console = plain_console()
    passed = [mark for mark in sorted(marks) if mark < trainer.step]
    gone = [mark for mark in passed if not (_step_folder(out, mark) / CARD_FILE).exists()]
    if gone:
        steps = ", ".join(map(str, gone))
        console.print(f"Not kept, for they are past: the networks of steps {steps}.")
    if (out / CARD_FILE).exists() and trainer.step == trainer.config.steps:
        console.print(f"{out} has been trained to the end, and is left as it is.")
        return
    console.print(_intention(task, trainer, replay))

    calibrations: dict[int, dict[str, object]] = {}  # step → it: the last may be in two folders

    def save(folder: Path, progress: Callable[[int], None]) -> None:
        if trainer.step not in calibrations:
            console.print(f"Calibrating the drafts (slopes and acceptance) for {folder} …")
            calibrations[trainer.step] = trainer.calibration(progress)
        card = _card(task, trainer, replay, calibrations[trainer.step])
        save_checkpoint(folder, trainer.checkpoint(card))

    mark = lambda progress: save(_step_folder(out, trainer.step), progress)  # noqa: E731
    try:
        _run(trainer, state_file, marks, mark)
        with Stage("calibrating") as stage:
            save(out, lambda done: stage.update(done, counted(done, "chunk")))
    except KeyboardInterrupt:
        without = "" if resume else " without --no-resume"
        console.print(f"Stopped at step {trainer.step}; the same command{without} goes on.")
        raise
    console.print(f"Final loss {trainer.loss:.4f}. Checkpoint: {out}")


def _step_folder(out: Path, step: int) -> Path:
    return out / f"step-{step:06d}"


def _intention(task: str | None, trainer: Trainer, replay: Replay) -> str:
    """What is about to be trained, on what."""
    parameters = sum(p.numel() for p in trainer.network.parameters())
    episodes = counted(len(replay.episode_ends), "episode")
    what = task or ", ".join(replay.observations)
    text = (
        f"Training {what}: {parameters / 1e6:.1f} M parameters on {episodes} "
        f"({counted(trainer.num_windows, 'window')}), "
        f"{counted(trainer.config.steps, 'step')} of {trainer.config.batch_size}, {trainer.device}"
    )
    if trainer.step:
        text += f", resumed at step {trainer.step}"
    if short := too_short(replay, *trainer.policy.horizons):
        text += f"\nToo short to hold a chunk, and left out: {counted(short, 'episode')}."
    return text


def _check(threads: int | None, seed: int, out: Path) -> None:
    """Refuse at once what would fail after the data has been read."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be 1 or more, got {threads}")
    if not 0 <= seed < 2**64:
        raise InputError(f"--seed must be from 0 to 2^64 - 1, got {seed}")
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"the output must be a folder, but {out} is a file")
    if any((out / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
        raise OutputExistsError(f"{out} is a zarr store; choose another --out")
    if not any((out / name).exists() for name in (STATE_FILE, CARD_FILE)):
        check_only_ours(out, "a training", [f"{STATE_FILE}.part"])
    check_writable(out / CARD_FILE)


def _prepare(out: Path, trainer: Trainer, resume: bool) -> Path:
    state_file = out / STATE_FILE
    if (out / CARD_FILE).exists() and not (resume and state_file.exists()):
        raise OutputExistsError(f"{out} already holds a checkpoint; choose another --out")
    if resume and state_file.exists():
        try:
            trainer.load_state(state_file)
        except CheckpointError as error:
            finished = (out / CARD_FILE).exists()  # and is not started over
            advice = "" if finished else ", or --no-resume to start over"
            if finished:  # a training has an end, and is not made longer
                advice = f" (with --start-from {out} it begins with these weights, if they fit)"
            raise CheckpointError(f"{error}; choose another --out{advice}") from error
    else:
        _clear(out, state_file)
    return state_file


def _clear(out: Path, state_file: Path) -> None:
    """Remove the networks of a run that is started over."""
    kept = [f for f in out.glob("step-*") if re.fullmatch(r"step-\d{6,}", f.name)]
    kept = [folder for folder in kept if (folder / CARD_FILE).exists()]
    if kept and not state_file.exists():
        raise OutputExistsError(
            f"{out} holds networks ({', '.join(sorted(f.name for f in kept)):.200}) and no "
            f"{STATE_FILE} of the run that made them; choose another --out"
        )
    for folder in kept:
        shutil.rmtree(folder)


def _run(
    trainer: Trainer,
    state_file: Path,
    marks: Collection[int],
    save: Callable[[Callable[[int], None]], None],
) -> None:
    """Train to the end; `save` at the steps in `marks`."""
    with Stage("step", trainer.config.steps, trainer.step) as stage:
        calibrating = lambda done: stage.update(note=f"calibrating, {done} chunks")  # noqa: E731
        if trainer.step in marks:  # stopped there, perhaps before it was saved
            save(calibrating)

        def after(now: Report) -> None:
            stage.update(now.step, f"loss {now.loss:.4f}")
            if now.step in marks:
                trainer.save_state(state_file)  # no network without the run that made it
                save(calibrating)

        trainer.run(state_file, after)


def _card(
    task: str | None, trainer: Trainer, replay: Replay, calibration: dict[str, object]
) -> dict[str, object]:
    return {
        **({"task": task} if task else {}),
        "recipe": _recipe(trainer),
        "training_data": data_card(replay),
        "calibration": calibration,
    }


def _recipe(trainer: Trainer) -> dict[str, object]:
    config = trainer.config
    return {
        "optimizer": "AdamW, betas (0.95, 0.999)",
        "steps": config.steps,
        "steps_done": trainer.step,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "learning_rate_schedule": "linear warm-up, cosine to zero",
        "weight_decay": config.weight_decay,
        "gradient_clip": config.gradient_clip,
        "ema_power": config.ema_power,
        "seed": config.seed,
        "precision": config.precision,
        "started_from": trainer.started_from,
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "seconds": round(trainer.seconds, 1),
        "final_loss": round(trainer.loss, 5),
        "torch": torch.__version__,
    }
