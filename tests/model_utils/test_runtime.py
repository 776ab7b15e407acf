import os
import subprocess
import sys

import pytest

from model_utils import runtime
from model_utils.errors import UserError


def in_process(code, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "GLOG_v")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**env, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


START = (
    "import os\nfrom model_utils import runtime\nfrom model_utils.logs import start_logging\n"
    "start_logging()\nruntime.start('auto', 5)\n"
)


def test_the_cap_is_set_and_said_and_a_users_own_value_is_kept():
    text = in_process(START + "print(os.environ['ONEDNN_MAX_CPU_ISA'])")
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in text and text.splitlines()[-1] == "AVX2"
    assert "device CPU (auto: neither Ascend nor GPU works here)" in text
    text = in_process(START, ONEDNN_MAX_CPU_ISA="SSE41")
    assert "ONEDNN_MAX_CPU_ISA=SSE41" in text


@pytest.mark.skipif("avx512f" not in open("/proc/cpuinfo").read(), reason="no AVX-512 here")
def test_the_cap_changes_the_convolution_that_runs(tmp_path):
    """Without it oneDNN takes its reference implementation on AVX-512 processors."""
    code = (
        "import sys\nfrom model_utils import runtime\n"
        "if len(sys.argv) < 2:\n    runtime.cap_convolution_isa()\n"
        "import mindspore as ms, numpy as np\nfrom model_utils.layers import conv2d\n"
        "conv2d(8, 8, 3, padding=1)(ms.Tensor(np.ones((1, 8, 32, 32), np.float32))).asnumpy()\n"
    )
    script = tmp_path / "conv.py"
    script.write_text(code)

    def implementation(*arguments):
        env = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**env, "ONEDNN_VERBOSE": "1"},
        )
        return [line for line in done.stdout.splitlines() if ",convolution," in line][0]

    assert "ref:any" not in implementation()
    assert "ref:any" in implementation("uncapped")


def test_a_device_that_is_not_there_is_a_sentence():
    for name in ("Ascend", "GPU"):
        with pytest.raises(UserError, match=f"no working {name}.*use device_target=auto"):
            runtime.choose_device(name)
    with pytest.raises(UserError, match="TPU is not one of auto, Ascend, GPU, CPU"):
        runtime.choose_device("TPU")
    assert runtime.choose_device("cpu")[0] == "CPU"


def test_seeds_fix_every_source_of_random_numbers():
    code = START + (
        "import random, numpy as np, mindspore as ms\n"
        "print(random.random(), np.random.rand(), ms.ops.rand(2).asnumpy())\n"
    )
    assert in_process(code).splitlines()[-1] == in_process(code).splitlines()[-1]


def test_a_rank_without_a_launcher_is_a_sentence():
    code = (
        "from model_utils import runtime\nfrom model_utils.errors import UserError\n"
        "try:\n    runtime.start('CPU', 0, True)\nexcept UserError as error:\n    print(error)\n"
    )
    assert "no launcher started this process" in in_process(code)


@pytest.mark.parametrize(
    ("name", "value", "distributed"), [("DEVICE_ID", "abc", False), ("RANK_SIZE", "x", True)]
)
def test_a_launchers_number_that_is_none_is_a_sentence(monkeypatch, name, value, distributed):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}='{value}' is not a whole number.*unset it"):
        runtime.start("CPU", 0, distributed)


def test_nothing_happens_at_import():
    """No output, no argument parsing, no device, no environment variable."""
    code = (
        "import os, sys, pkgutil, importlib\nbefore = dict(os.environ)\nsys.argv = ['x', '--bad']\n"
        "import model_utils, research.sdnet\n"
        "for package in (model_utils, research.sdnet.src):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if 'torch_' not in found.name:\n"
        "            importlib.import_module(found.name)\n"
        "changed = {k for k in os.environ if os.environ[k] != before.get(k)}\n"
        "print('changed', sorted(k for k in changed if k.startswith(('ONEDNN', 'MS_', 'GLOG'))))\n"
    )
    assert in_process("import research.sdnet.src\n" + code) == "changed []\n"
