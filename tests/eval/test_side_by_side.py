"""Films beside each other: as long as the longest, at the films' own speed."""

import numpy as np
import pytest

from asd_policy.eval.rollout.side_by_side import main

imageio = pytest.importorskip("imageio.v2")


def film(path, frames, shade, fps=20):
    with imageio.get_writer(path, fps=fps, macro_block_size=2) as writer:
        for number in range(frames):  # equal frames would be kept as one
            picture = np.full((64, 80, 3), shade, np.uint8)
            picture[: 1 + number] = 120
            writer.append_data(picture)
    return str(path)


def test_the_shorter_film_keeps_its_last_frame(tmp_path):
    from PIL import Image

    out = tmp_path / "both.webp"
    left, right = film(tmp_path / "a.mp4", 20, 20), film(tmp_path / "b.mp4", 40, 220)
    main([left, right, "--out", str(out), "--width", "40"])
    with Image.open(out) as picture:
        assert picture.size == (80, 32)
        assert picture.n_frames * 100 == 2000  # milliseconds: 40 frames at 20 a second
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("RGB"))
    assert last[24:, :36].max() < 60  # the left one ended with its picture's lower half dark
    assert last[24:, 44:].min() > 180


def test_what_is_no_film_is_one_line(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "a.mp4"), "--out", str(tmp_path / "both.webp")])
    assert end.value.code == 2
    assert "expected a film, got" in capsys.readouterr().err
