"""Set-up shared by all tests: the framework as the entry scripts start it."""

import os

import pytest

# Before the first convolution of the process (docs/framework_traps.md, "Convolutions").
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# The framework's own chatter (deprecations, graph notes) hides test failures.
os.environ.setdefault("GLOG_v", "3")


@pytest.fixture(autouse=True, scope="session")
def _graph_mode():
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device("CPU")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of one megabyte; skipped where mounting is not allowed."""
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
