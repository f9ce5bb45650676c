"""What every test shares: nobody's progress, and one thread for each of the parallel workers."""

import os
import tempfile

import pytest

_progress = tempfile.TemporaryDirectory(prefix="kda-lab-progress-")
os.environ["KDA_LAB_PROGRESS"] = _progress.name  # before any test starts a process of its own


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker():
    """Two workers with two threads each on two cores are slower than two with one."""
    import torch

    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)
