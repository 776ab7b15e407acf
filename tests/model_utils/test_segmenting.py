"""Which files the Python API of segmentation networks takes."""

from pathlib import Path

import pytest

from model_utils.errors import UserError
from model_utils.segmenting import image_files, not_results


def test_results_of_an_earlier_run_are_no_inputs(tmp_path):
    images = tmp_path / "flüge 1"
    for name in ("a.png", "deep/b.png", "out/a_map.png", "outer/c.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    found = image_files(images)
    names = [file.relative_to(images).as_posix() for file in found]
    assert names == ["a.png", "deep/b.png", "out/a_map.png", "outer/c.png"]
    kept = not_results(found, images, images / "out")
    assert [file.name for file in kept] == ["a.png", "b.png", "c.png"]
    assert not_results(found, images, tmp_path / "elsewhere") == found
    # A single file may have its results beside it.
    assert not_results(found[:1], found[0], images) == found[:1]


def test_results_among_the_inputs_are_refused(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="input and output folder, .* choose another --output_path"):
        not_results(image_files("out"), "out", Path("out"))
    with pytest.raises(UserError, match="holds nothing but results"):
        not_results(image_files("."), ".", tmp_path / "out")
