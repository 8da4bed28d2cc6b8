"""Output that cannot be written is found out before anything is made; one process at a time."""

import errno

import pytest

from asd_policy import files
from asd_policy.errors import DatasetError, OutputError, OutputExistsError
from asd_policy.files import LOCK_FILE, check_writable, claimed, writing


def test_the_reason_is_the_systems(tmp_path):
    with (
        pytest.raises(OutputError, match=r"x\.png could not be written: No space left on device"),
        writing(tmp_path / "x.png"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DatasetError, match="ours"), writing(tmp_path):
        raise DatasetError("ours")


def test_a_path_that_can_be_made_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.zarr")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(OutputError, match=r"x\.zarr could not be written: Permission denied"):
        check_writable(tmp_path / "x.zarr")


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
def test_one_at_a_time(tmp_path):
    folder = tmp_path / "work"
    with (
        claimed(folder),
        pytest.raises(OutputExistsError, match="another process is at work in"),
        claimed(folder),
    ):
        pass
    with claimed(folder):  # and afterwards the next
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
    assert not folder.exists()
