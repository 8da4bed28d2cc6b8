"""What a store of demonstrations shows: a figure of its variety, and a film of an episode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from asd_policy.data.zarr_store import ZarrStore
from asd_policy.files import replacing

_ROWS = 4000  # of the store, at most, that look for their neighbours


def draw_variety(store: Path, out: Path) -> None:
    """Draw the paths of the hand, its heights and headings, and how far actions at like moments
    differ, to a picture `out` (the name's end says the format).

    Args:
        store: path of a store that `asd_policy.envs.demos.collect` wrote.
        out: path of the picture.

    Raises:
        DatasetError: the store is not what was written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    demonstrations = ZarrStore(store)
    arms = sum(
        str(key).endswith("_eef_pos") for key in demonstrations.attributes["observation_keys"]
    )
    figure = Figure(figsize=(12, 3.4 * arms), layout="constrained")
    FigureCanvasAgg(figure)
    for arm, row in enumerate(figure.subplots(arms, 4, squeeze=False)):
        _draw_arm(demonstrations, arm, "the hand" if arms == 1 else f"hand {arm}", row)
    count = len(demonstrations.read("meta/episode_ends"))
    said = demonstrations.attributes
    title = f"{said['task']}: {count} demonstrations, noise {said['noise']['std']}"
    if every := said.get("interruptions", {}).get("every"):
        title += f", interrupted every {every} steps"
    figure.suptitle(title, fontsize=10)
    with replacing(out) as file:
        figure.savefig(file, dpi=150, format=out.suffix[1:])


def _draw_arm(demonstrations: ZarrStore, arm: int, hand: str, row: np.ndarray) -> None:
    """Draw what the hand of an arm did into a row of four axes."""
    ends = demonstrations.read("meta/episode_ends")
    positions = np.split(demonstrations.read(f"data/robot{arm}_eef_pos"), ends[:-1])
    turns = np.split(demonstrations.read(f"data/robot{arm}_eef_quat"), ends[:-1])
    above, height, heading, spread = row
    for position, turn in zip(positions, turns, strict=True):
        seconds = np.arange(len(position)) / 20
        above.plot(position[:, 1], position[:, 0], linewidth=0.5, alpha=0.6)
        height.plot(seconds, position[:, 2], linewidth=0.5, alpha=0.6)
        heading.plot(seconds, _headings(turn), linewidth=0.5, alpha=0.6)
    above.set(title=f"{hand.capitalize()} from above", xlabel="y (m)", ylabel="x (m)")
    above.set_aspect("equal", adjustable="datalim")  # a panel as narrow as its paths has no room
    above.locator_params(nbins=5)
    height.set(title=f"Height of {hand}", xlabel="time (s)", ylabel="z (m)")
    heading.set(title=f"Heading of {hand}", xlabel="time (s)", ylabel="rad from the first")
    distances = like_moments(demonstrations, arm)
    if len(distances):  # none, where there is one episode only
        spread.hist(distances, bins=50, range=(0, 2), density=True)
    spread.set(title="Actions at like moments", xlabel="distance of move commands")


def _headings(quaternions: np.ndarray) -> np.ndarray:
    """Turn about the vertical since the first row, radians, (T,), of (T, 4) quaternions: the twist
    of the rotation since then. Unlike the bearing of an axis of the hand, it stays defined when the
    hand is laid level."""
    rotations = Rotation.from_quat(quaternions)
    turned = (rotations * rotations[0].inv()).as_quat()
    return np.asarray(np.unwrap(2 * np.arctan2(turned[:, 2], turned[:, 3])))


def like_moments(demonstrations: ZarrStore, arm: int = 0) -> np.ndarray:
    """Distances (rows,) between an arm's moves that experts chose at like moments of two episodes.

    Each row's neighbour is the nearest row of another episode, all observations scaled to unit
    variance; the distance is that of the position commands (0 to 2√3). A set of demonstrations
    with one way of doing things would have them near 0.
    """
    keys = [str(key) for key in demonstrations.attributes["observation_keys"]]
    rows = np.concatenate([demonstrations.read(f"data/{key}") for key in keys], axis=1)
    rows = (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-6)
    moves = demonstrations.read("data/action")[:, 7 * arm : 7 * arm + 3]
    ends = demonstrations.read("meta/episode_ends")
    owner = np.searchsorted(ends, np.arange(len(rows)), side="right")
    asking = np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)
    distances = []
    for episode in np.unique(owner[asking]):
        mine, others = asking[owner[asking] == episode], np.flatnonzero(owner != episode)
        if len(others):
            nearest = others[cKDTree(rows[others]).query(rows[mine])[1]]
            distances.append(np.linalg.norm(moves[mine] - moves[nearest], axis=1))
    return np.concatenate(distances) if distances else np.zeros(0)
