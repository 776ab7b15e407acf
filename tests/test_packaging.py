"""What is declared agrees with itself and with what is imported."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL_IMPORTS = {"openvino", "torch", "tensorboardX", "moxing", "obs"}
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"} | {
    "PIL": "pillow"
}

# Not declared here, because the version is the declared package's business.
COMES_WITH = {
    "google": ("protobuf", "mindspore"),
    "scipy": ("scipy", "scikit-learn"),
    "threadpoolctl": ("threadpoolctl", "scikit-learn"),
}


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def requirement_lines():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_and_pyproject_agree():
    assert requirement_lines() == PROJECT["dependencies"]


def test_each_bound_has_its_reason_above_it():
    for file, pattern in (
        ("requirements.txt", r"^[a-z]"),
        ("pyproject.toml", r'^    "[a-z0-9-]+[<>=]'),
    ):
        lines = (ROOT / file).read_text().splitlines()
        for above, line in zip(lines, lines[1:], strict=False):
            if re.match(pattern, line) and name_of(line.strip(' "')) in map(
                name_of, requirement_lines()
            ):
                assert above.strip().startswith("#"), f"{file}: {line} has no reason"


def imported(folder):
    """Top-level names imported anywhere below a folder, also inside functions."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], file.relative_to(ROOT))
    return found


@pytest.mark.parametrize("folder", ["model_utils", "research", "scripts"])
def test_everything_imported_is_declared(folder):
    declared = {name_of(line) for line in requirement_lines()}
    own = {"model_utils", "research", "src"}
    for name, file in imported(folder).items():
        if name in sys.stdlib_module_names or name in own or name in OPTIONAL_IMPORTS:
            continue
        if name in COMES_WITH:
            distribution, carrier = COMES_WITH[name]
            assert distribution in map(name_of, metadata.requires(carrier))
            name = carrier
        assert DISTRIBUTIONS.get(name, name).lower() in declared, f"{file} imports {name}"


def test_scripts_can_be_executed():
    scripts = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("research/*/scripts/*.sh"), ROOT / ".ci/run"]
    assert len(scripts) >= 8
    for script in scripts:
        assert os.access(script, os.X_OK), f"chmod +x {script.relative_to(ROOT)}"
        assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_every_network_has_the_wrappers():
    names = {"run_train.sh", "run_standalone_train.sh", "run_distribute_train.sh", "run_eval.sh"}
    networks = sorted(path.parent for path in ROOT.glob("research/*/src"))
    assert networks
    for network in networks:
        assert names <= {path.name for path in network.glob("scripts/*.sh")}, network.name
        for name in names:
            first, second = (network / "scripts" / name).read_text().splitlines()
            assert f"NETWORK={network.name} " in second and f"/{name}" in second


def test_shell_scripts_are_clean():
    tool = Path(sys.executable).with_name("shellcheck")
    tool = tool if tool.exists() else shutil.which("shellcheck")
    assert tool, "pip install -e '.[dev]' brings shellcheck"
    scripts = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("research/*/scripts/*.sh"), ROOT / ".ci/run"]
    done = subprocess.run(
        [str(tool), "--external-sources", f"--source-path={ROOT}", *map(str, scripts)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_folder_of_modules_is_a_package_that_gets_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["model_utils*", "research*"]
    for file in [*ROOT.glob("model_utils/**/*.py"), *ROOT.glob("research/*/src/**/*.py")]:
        folder = file.parent
        while folder != ROOT:
            assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)}"
            folder = folder.parent
