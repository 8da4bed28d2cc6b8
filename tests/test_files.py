"""Output that cannot be written is found out before anything is made; one process at a time."""

import errno

import pytest
import torch

from asd_policy import files
from asd_policy.errors import DatasetError, OutputError, OutputExistsError
from asd_policy.files import LOCK_FILE, check_writable, claimed, replacing, writing


def test_the_reason_is_the_systems(tmp_path):
    with (
        pytest.raises(OutputError, match=r"x\.png could not be written: No space left on device"),
        writing(tmp_path / "x.png"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DatasetError, match="ours"), writing(tmp_path):
        raise DatasetError("ours")


def test_a_disk_that_fills_up_while_pytorch_writes(tmp_path):
    """PyTorch's writer raises an error of its own over the system's, which has the reason."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match=r"x\.pt could not be written: File too large"),
            replacing(tmp_path / "x.pt") as file,
        ):
            torch.save({"network": torch.zeros(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


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
    assert not (folder / LOCK_FILE).exists()
    with claimed(folder):  # and afterwards the next
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
    assert not folder.exists()


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
def test_a_file_of_the_user_s_is_no_lock(tmp_path):
    """It would be removed at the end. A folder of results may be one's home."""
    (tmp_path / LOCK_FILE).write_text("the number of mine")
    with pytest.raises(OutputExistsError, match="a file with something in it"), claimed(tmp_path):
        pytest.fail("entered")
    assert (tmp_path / LOCK_FILE).read_text() == "the number of mine"


def test_who_waits_for_a_lock_does_not_take_another_file_for_it(tmp_path, monkeypatch):
    """Between opening and locking, its owner ended, and a third one began with a new file."""
    real = files.fcntl.flock

    def meanwhile(file, how):
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).touch()
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", meanwhile)
    with pytest.raises(OutputExistsError, match="another process"), claimed(tmp_path):
        pass


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with (
        pytest.raises(OutputError, match=r"without locks \(Function not implemented\)"),
        claimed(tmp_path),
    ):
        pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as file:
        file.write(b"one")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("two")
    with (
        pytest.raises(OutputError, match=r"x\.txt could not be written: No space"),
        replacing(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"one"
    assert [each.name for each in path.parent.iterdir()] == ["x.txt"]
