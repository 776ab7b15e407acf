import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from model_utils.errors import UserError
from model_utils.manifest import Manifest, read_manifest, write_replacing

SETTINGS = {"side": 8, "names": ("a", "b")}


def test_entries_are_there_again(tmp_path):
    path = tmp_path / "out" / "manifest.jsonl"
    with Manifest(path, SETTINGS) as manifest:
        manifest.add({"file": "ä b.png", "bytes": 3})
    with Manifest(path, SETTINGS) as manifest:
        assert manifest.done == {"ä b.png": {"file": "ä b.png", "bytes": 3}}
        manifest.add({"file": "c", "bytes": 4})
        manifest.add({"file": "c", "bytes": 5})  # done again: the last counts
    assert read_manifest(path) == [{"file": "ä b.png", "bytes": 3}, {"file": "c", "bytes": 5}]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "settings": {"side": 8, "names": ["a", "b"]}
    }


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, SETTINGS) as manifest:
        manifest.add({"file": "a"})
    before = path.read_bytes()
    with (
        pytest.raises(UserError, match=r"was written with side 8, not 9; choose another"),
        Manifest(path, {**SETTINGS, "side": 9}),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b'{"file": "c"', 2), (b'{"file": "c"}', 2), (b"\0\0\0\n", 2), (b'{"other": 1}\n', 2)],
)
def test_a_line_that_was_cut_off_is_left_out_and_replaced(tmp_path, tail, kept):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, SETTINGS) as manifest:
        manifest.add({"file": "a"})
        manifest.add({"file": "b"})
    with open(path, "ab") as stream:
        stream.write(tail)
    with Manifest(path, SETTINGS) as manifest:
        assert len(manifest.done) == kept
        manifest.add({"file": "d"})
    assert [entry["file"] for entry in read_manifest(path)] == ["a", "b", "d"]


def test_a_header_cut_off_begins_anew_but_foreign_files_stay(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"settin')
    with Manifest(path, SETTINGS) as manifest:
        assert manifest.done == {}
    path.write_bytes(b"name,bytes\na,3\n")
    with pytest.raises(UserError, match="is no manifest"), Manifest(path, SETTINGS):
        pass
    assert path.read_bytes() == b"name,bytes\na,3\n"


def test_threads_write_whole_lines(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, SETTINGS) as manifest:

        def work(number):
            for k in range(200):
                manifest.add({"file": f"{number}/{k}", "filling": "x" * (7 * k)})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_manifest(path)) == 800


def test_a_killed_process_loses_no_finished_line(tmp_path):
    path = tmp_path / "manifest.jsonl"
    code = (
        "from model_utils.manifest import Manifest\n"
        f"with Manifest({str(path)!r}, {SETTINGS!r}) as manifest:\n"
        "    for k in range(10**6):\n"
        "        manifest.add({'file': str(k)})\n"
        "        print(k, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = [int(process.stdout.readline()) for _ in range(500)]
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.communicate()[0].splitlines() if line]
    names = [entry["file"] for entry in read_manifest(path)]
    assert names == [str(k) for k in range(len(names))] and len(names) >= len(said)


def test_write_replacing_is_whole_or_absent(tmp_path):
    target = tmp_path / "a.png"
    (tmp_path / ".a.png.part").write_bytes(b"left by a kill")
    write_replacing(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"new"
    with pytest.raises(UserError, match="cannot write"):
        write_replacing(target / "b.png", b"")
