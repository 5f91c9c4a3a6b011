"""Shared by all tests: where the real scans are, and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests run in one process per core: more threads than cores make every OpenMP barrier wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Property tests draw the same cases every time.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

SHARED = Path(os.environ.get("SCANSMITH_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans for tests; skips when it is not there."""
    if not SHARED.is_dir():
        pytest.skip(f"no real scans at {SHARED}")
    return SHARED
