import fcntl
import socket
import time

import pytest

from hybrid_lightning.cli.run_lock import RunLock
from hybrid_lightning.errors import ConfigError


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    first = RunLock(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is being written by 'process [0-9]+ on .* since 2.* Wait for its end"):
        RunLock(tmp_path / "run")
    first.release()
    second = RunLock(tmp_path / "run")
    second.release()
    second.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_of_a_process_that_has_died_holds_nobody_up(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on nowhere\n")
    RunLock(tmp_path).release()


def test_a_lock_whose_file_was_removed_by_its_owner_is_none(tmp_path, monkeypatch):
    """Its owner leaves between the opening and the locking of the file by another process."""
    real = fcntl.flock
    calls = []

    def flock(file, operation):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(operation)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RunLock(tmp_path)
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="is being written"):
        RunLock(tmp_path)
    lock.release()


def test_other_ranks_than_the_first_leave_it_alone(tmp_path, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    RunLock(tmp_path / "run").release()
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_has_left_running_is_waited_for(tmp_path, monkeypatch):
    """Its data workers hold the lock until they notice."""
    path = tmp_path / ".lock"
    path.write_text(f"process {2**22 + 1} on {socket.gethostname()} since yesterday\n")
    file = path.open()
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda seconds: file.close())
    RunLock(tmp_path).release()
    assert file.closed


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to("mine")
    with pytest.raises(ConfigError, match=r"\.lock' cannot be written: Too many levels of symbolic links"):
        RunLock(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
