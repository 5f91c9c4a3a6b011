"""Seeds, atomic files, interruption and progress."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from scansmith import runtime


def test_seeds_differ_by_every_part_and_are_the_same_everywhere():
    assert runtime.derive_seed(0, "step", 1) == 7426281450441659682
    seeds = {
        runtime.derive_seed(seed, purpose, i) for seed in (0, 1) for purpose in ("step", "epoch") for i in range(50)
    }
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert runtime.derive_seed(1, 23) != runtime.derive_seed(12, 3)


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    runtime.write_json(path, {"old": 1})

    def half(partial):
        partial.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no space left on the disk while writing .*a\.json: free some space"):
        runtime.write_atomic(path, half)
    assert path.read_text() == '{\n "old": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_json_refuses_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        runtime.write_json(tmp_path / "a.json", {"value": float("nan")})


def test_a_file_in_place_of_a_folder_is_told_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another output folder"):
        runtime.write_json(tmp_path / "file" / "a.json", {})


def test_an_unwritable_folder_is_told_in_words(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="read-only for this user"):
        runtime.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_the_first_ctrl_c_raises_a_flag_and_the_second_stops_at_once(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), runtime.stop_flag() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        os.kill(os.getpid(), signal.SIGTERM)  # launchers send several at once
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again" in capsys.readouterr().err


def test_threads_respect_what_the_user_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert runtime.cpu_count() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert runtime.cpu_count() >= 1


def test_devices_that_are_not_here_are_refused():
    with pytest.raises(ValueError, match=r"expected a device of this machine, got 'abacus'.*--device auto"):
        runtime.choose_device("abacus")
    assert runtime.choose_device("cpu").type == "cpu"


def test_progress_counts_from_where_it_resumed():
    with runtime.Progress("x", 100, quiet=True) as progress:
        progress.resume(50)
        progress.update(50)
        assert progress.rate == 0.0
        progress.update(60, "good")
        assert progress.rate > 0 and progress.words == "good"
