"""The shell scripts, in a copy of the repository whose path holds a space.

The networks in the copy only note how they were called; what a real network does is tested with
the network.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("run_train.sh", "run_distribute_train.sh", "run_standalone_train.sh", "run_eval.sh")
NOTE = """
import json, os, sys
name = f"{os.path.basename(__file__)}-{os.environ['RANK_ID']}.json"
with open(name, "w") as stream:
    json.dump({"file": __file__, "argv": sys.argv[1:], "device": os.environ["DEVICE_ID"]}, stream)
"""
TABLE = {
    "version": "1.0",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "10.1.1.1",
            "device": [
                {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"},
                {"device_id": "1", "device_ip": "192.2.27.6", "rank_id": "1"},
            ],
        }
    ],
    "status": "completed",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "my zoo"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    shutil.copytree(ROOT / "model_utils", copy / "model_utils")
    shutil.copytree(ROOT / "research" / "sdnet" / "scripts", copy / "research/sdnet/scripts")
    for network in ("sdnet", "other"):
        for task in ("train", "eval"):
            file = copy / "research" / network / f"{task}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(NOTE)
    return copy


@pytest.fixture
def work(tmp_path):
    """A foreign working directory, which has a model_utils of its own, with table and data."""
    folder = tmp_path / "some where"
    (folder / "my data").mkdir(parents=True)
    (folder / "best model.ckpt").write_text("")
    (folder / "hccl 2p.json").write_text(json.dumps(TABLE))
    (folder / "model_utils").mkdir()
    (folder / "model_utils" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    return folder


def run(script, *arguments, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("NETWORK", "PYTHONPATH", "SERVER_ID")}
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env=clean | {"PYTHON": sys.executable, "DEVICE_TARGET": "CPU"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def note(folder, task, rank=0):
    return json.loads((folder / f"{task}.py-{rank}.json").read_text())


@pytest.mark.parametrize("where", ["scripts", "research/sdnet/scripts"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_arguments_print_the_usage_and_end_with_1(repository, work, where, script):
    for arguments in ((), ("a", "b", "c", "d"), ("--epochs=3",)):
        done = run(repository / where / script, *arguments, cwd=work)
        assert done.returncode == 1, arguments
        assert done.stderr.startswith("Usage: bash run_") and "DATA_PATH" in done.stderr
        assert not list(work.glob("train*"))


@pytest.mark.parametrize("script", ["run_train.sh", "run_distribute_train.sh"])
def test_train_by_table_from_anywhere(repository, work, script):
    done = run(
        repository / "scripts" / script, "hccl 2p.json", "my data", "sdnet", "--epochs=3", cwd=work
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        called = note(work, "train", rank)
        assert called["file"] == str(repository / "research/sdnet/train.py")
        assert called["device"] == str(rank)
        assert f"--data_path={work / 'my data'}" in called["argv"]
        assert "--is_distributed=True" in called["argv"] and called["argv"][-1] == "--epochs=3"
        assert (work / f"train_parallel{rank}" / "log").is_file()
        assert (work / f"train_parallel{rank}" / "env.log").is_file()
    assert f"RANK_TABLE_FILE={work / 'hccl 2p.json'}" in done.stdout
    assert "start training for rank 1, device 1" in done.stdout


def test_the_network_is_the_current_folder_if_not_named(repository, work):
    folder = repository / "research" / "other"
    done = run("../../scripts/run_train.sh", work / "hccl 2p.json", work / "my data", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert note(folder, "train", 1)["file"] == str(folder / "train.py")


def test_an_unknown_network_lists_the_known_ones(repository, work):
    done = run(repository / "scripts/run_train.sh", "hccl 2p.json", "my data", cwd=work)
    assert done.returncode == 2
    assert "no network 'some where'" in done.stderr and "other, sdnet" in done.stderr


def test_the_networks_own_script_knows_its_name(repository, work):
    done = run(
        repository / "research/sdnet/scripts/run_train.sh", "hccl 2p.json", "my data", cwd=work
    )
    assert done.returncode == 0, done.stderr
    assert note(work, "train", 1)["file"] == str(repository / "research/sdnet/train.py")


@pytest.mark.parametrize(
    ("arguments", "device"), [(("3", "my data"), "3"), (("my data",), "0"), (("my data",), "5")]
)
def test_standalone(repository, work, arguments, device):
    environment = {"DEVICE_ID": "5"} if device == "5" else {}
    script = repository / "research/sdnet/scripts/run_standalone_train.sh"
    done = run(script, *arguments, cwd=work, **environment)
    assert done.returncode == 0, done.stderr
    called = note(work, "train")
    assert called["device"] == device
    assert called["argv"][:2] == [f"--data_path={work / 'my data'}", f"--output_path={work}/train"]
    assert "--is_distributed=True" not in called["argv"]
    assert (work / "train" / "log").is_file()


def test_eval(repository, work):
    done = run(repository / "scripts/run_eval.sh", "my data", "best model.ckpt", "sdnet", cwd=work)
    assert done.returncode == 0, done.stderr
    argv = note(work, "eval")["argv"]
    assert f"--data_path={work / 'my data'}" in argv
    assert f"--checkpoint_path={work / 'best model.ckpt'}" in argv
    assert (work / "eval" / "log").is_file()


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("run_train.sh", ("gone.json", "my data", "sdnet"), "gone.json does not exist"),
        ("run_train.sh", ("hccl 2p.json", "gone", "sdnet"), "gone does not exist"),
        ("run_train.sh", ("best model.ckpt", "my data", "sdnet"), "not valid JSON"),
        ("run_eval.sh", ("my data", "gone.ckpt", "sdnet"), "gone.ckpt does not exist"),
    ],
)
def test_bad_paths_are_one_sentence(repository, work, script, arguments, words):
    done = run(repository / "scripts" / script, *arguments, cwd=work)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words in done.stderr


def test_a_missing_interpreter_is_named(repository, work):
    done = run(
        repository / "scripts/run_eval.sh", "my data", "best model.ckpt", "sdnet",
        cwd=work, PYTHON="/no/python",
    )  # fmt: skip
    assert done.returncode == 1 and "/no/python not found" in done.stderr


# --- the environment of quickstart.sh and test.sh ---------------------------------------------

# Builds the editable installation without network; the requirement to fail is a real one.
BUILD_BACKEND = """
import os, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def prepare_metadata_for_build_editable(directory, config_settings=None):
    if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
        raise SystemExit("the index is down")
    os.makedirs(f"{directory}/tiny-1.dist-info")
    with open(f"{directory}/tiny-1.dist-info/METADATA", "w") as stream:
        stream.write("Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
    return "tiny-1.dist-info"

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("tiny.pth", os.path.dirname(__file__) + "\\n")
        meta = "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n"
        wheel.writestr("tiny-1.dist-info/METADATA", meta)
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return name
"""


@pytest.fixture
def tiny(tmp_path):
    """A repository that needs nothing, around the real quickstart.sh."""
    root = tmp_path / "tiny zoo"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "model_utils").mkdir()
    (root / "model_utils" / "__init__.py").write_text("")
    (root / "model_utils" / "quickstart.py").write_text(
        "import os, sys\nprint('quick', sys.argv[1:], sys.prefix, os.getcwd())\n"
    )
    (root / "backend.py").write_text(BUILD_BACKEND)
    (root / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (root / "requirements.txt").write_text("# nothing\n")
    return root


def quickstart(root, *arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VENV", "PYTHONPATH")}
    return subprocess.run(
        ["bash", str(root / "scripts/quickstart.sh"), *arguments],
        cwd="/",
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_quickstart_makes_its_environment_once_and_again_when_requirements_change(tiny):
    first = quickstart(tiny, "sdnet", "--seed=1", PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    venv = tiny / ".venv"
    assert f"quick ['sdnet', '--seed=1'] {venv} {tiny}" in first.stdout
    assert "creating" in first.stdout and "installing" in first.stdout

    second = quickstart(tiny)
    assert second.returncode == 0
    assert "creating" not in second.stdout and "installing" not in second.stdout

    (tiny / "requirements.txt").write_text("# changed\n")
    (tiny / "broken").write_text("")
    failed = quickstart(tiny)
    assert failed.returncode == 1
    assert "the index is down" in failed.stderr and "error: installing" in failed.stderr
    assert "quick [" not in failed.stdout

    (tiny / "broken").unlink()
    third = quickstart(tiny)
    assert third.returncode == 0 and "creating" not in third.stdout
    assert "installing" in third.stdout, "a failed installation must not count as done"

    # What an interrupted creation leaves: no usable interpreter.
    (venv / "bin" / "python").unlink()
    fourth = quickstart(tiny, PYTHON=sys.executable)
    assert fourth.returncode == 0, fourth.stderr
    assert "creating" in fourth.stdout


def test_quickstart_without_a_fitting_python_says_so(tiny, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "tr"):
        (tools / tool).symlink_to(shutil.which(tool))
    old = tools / "python3"
    old.write_text("#!/bin/bash\nexit 1\n")  # what a Python 3.8 answers to the version question
    old.chmod(0o755)
    done = quickstart(tiny, PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "no Python 3.10, 3.11 or 3.12" in done.stderr
    assert not (tiny / ".venv").exists()


# --- check_readme.py --------------------------------------------------------------------------

FENCE = "```"


@pytest.fixture
def documented(tmp_path):
    root = tmp_path / "zoo"
    (root / "research" / "net").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)

    def write(english, chinese=None, folder=""):
        (root / folder / "README.md").write_text(english)
        (root / folder / "README_CN.md").write_text(english if chinese is None else chinese)

    write("nothing")
    return root, write


def bash(*lines, above=""):
    return "\n".join([above, FENCE + "bash", *lines, FENCE, ""])


def check(root, *arguments):
    script = ROOT / "scripts" / "check_readme.py"
    return subprocess.run(
        [sys.executable, str(script), "--root", str(root), *arguments],
        capture_output=True,
        text=True,
    )


def test_blocks_run_once_in_order_in_a_copy(documented):
    root, write = documented
    write(
        bash("echo one >> trace", "cat trace | wc -l")
        + bash("touch /no/such/place", above="<!-- needs: ascend -->")
        + "text\n"
        + bash("echo two >> trace; test $(cat trace | wc -l) = 2; test -f research/net/mine"
               " && exit 1 || true"),
    )  # fmt: skip
    write(bash("test ! -e trace; touch mine; test -f ../../trace"), folder="research/net")
    done = check(root, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("== done") == 3, "the Chinese blocks are the same ones"
    assert not (root / "trace").exists()


def test_a_failing_block_is_named(documented):
    root, write = documented
    write("# Title\n\n" + bash("true", "false | cat", "true"))
    done = check(root, "--run")
    assert done.returncode == 1 and "README.md:4: ended with exit status 1" in done.stderr


@pytest.mark.parametrize(
    ("english", "chinese", "words"),
    [
        (bash("a"), bash("b"), "README.md:2 and README_CN.md:2 show different commands"),
        (bash("a") + bash("b"), bash("a"), "README.md:6: the other language lacks"),
        (bash("a", above="<!-- needs: data -->"), bash("a"), "different commands or needs"),
        (bash("a", above="<!-- needs: luck -->"), None, "unknown need 'luck'"),
        (FENCE + "sh\na\n" + FENCE, None, "mark command blocks as bash"),
        (FENCE + "bash\na\n", None, "never closed"),
    ],
)
def test_broken_rules_are_refused(documented, english, chinese, words):
    root, write = documented
    write(english, chinese)
    done = check(root)
    assert done.returncode == 1 and words in done.stderr


def test_comments_may_be_in_the_language_of_the_reader(documented):
    root, write = documented
    write(bash("# train", "a  # now"), bash("# 训练", "a  # 现在"))
    assert check(root).returncode == 0
    (root / "README_CN.md").unlink()
    done = check(root)
    assert done.returncode == 1 and "README_CN.md is missing" in done.stderr


def test_a_need_applies_to_the_next_block_only(documented):
    root, write = documented
    write(bash("a", above="<!-- needs: ascend, data -->") + bash("b"))
    done = check(root, "--list")
    assert "needs ascend, data" in done.stdout
    assert "2 command blocks" not in done.stdout and "4 command blocks, 2 of them" in done.stdout
