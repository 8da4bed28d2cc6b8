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


@pytest.mark.parametrize("fps", [4, 10, 40])
def test_it_runs_as_fast_as_the_films(tmp_path, fps):
    from PIL import Image

    out = tmp_path / "one.webp"
    main([film(tmp_path / "a.mp4", 20, 20), "--out", str(out), "--fps", str(fps), "--width", "80"])
    with Image.open(out) as picture:
        frames, lasted = picture.n_frames, []
        for number in range(frames):
            picture.seek(number)
            picture.load()
            lasted.append(picture.info["duration"])
    assert sum(lasted) == pytest.approx(1000, abs=1000 / fps)


@pytest.mark.parametrize("wrong", [["--fps", "0"], ["--fps=-1"], ["--seconds", "0"], ["--width=0"]])
def test_numbers_of_which_no_frame_comes_are_one_line(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as end:
        main([film(tmp_path / "a.mp4", 3, 20), "--out", str(tmp_path / "both.webp"), *wrong])
    assert end.value.code == 2
    assert "from which a frame comes" in capsys.readouterr().err


def test_films_of_two_shapes_are_one_line(tmp_path, capsys):
    wide = tmp_path / "wide.mp4"
    with imageio.get_writer(wide, fps=20, macro_block_size=2) as writer:
        writer.append_data(np.zeros((32, 160, 3), np.uint8))
    with pytest.raises(SystemExit):
        main([film(tmp_path / "a.mp4", 3, 20), str(wide), "--out", str(tmp_path / "both.webp")])
    assert "expected films of one shape" in capsys.readouterr().err


def test_what_is_no_film_is_one_line(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "a.mp4"), "--out", str(tmp_path / "both.webp")])
    assert end.value.code == 2
    assert "expected a film, got" in capsys.readouterr().err
