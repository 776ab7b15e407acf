"""From nothing to results: generate data, train, evaluate, export, infer, and a page to look at.

``python -m model_utils.quickstart NETWORK [--output=FOLDER]``; ``scripts/quickstart.sh`` makes
the environment first. Every step runs the script a user would run, says its command, and is
skipped when it was done before with the same command and code.
"""

import hashlib
import html
import os
import subprocess
import sys
import time
from pathlib import Path

from model_utils.entry import guarded
from model_utils.errors import UserError
from model_utils.files import FolderLock, atomic_write, read_json, write_json
from model_utils.logs import duration
from model_utils.task import Step, Task, find_task, known_networks

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str]) -> None:
    """Run all steps of a network, then write index.html."""
    network, output = _arguments(argv)
    task = find_task(network)
    folder = output or ROOT / "quickstart" / network
    with FolderLock(folder):
        steps = task.quickstart(folder)
        begun = time.monotonic()
        log = []
        for number, step in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {step.title}", flush=True)
            log.append(_run(task, step, folder))
        page = write_page(task, steps, log, folder)
    print(f"done in {duration(time.monotonic() - begun)}; open {page}", flush=True)


def _arguments(argv: list[str]) -> tuple[str, Path | None]:
    network, output = "", None
    for argument in argv:
        if argument.startswith("--output="):
            output = Path(argument.partition("=")[2]).resolve()
        elif argument.startswith("-") or network:
            raise UserError(
                f"'{argument}' is unknown; usage: quickstart [{'|'.join(known_networks())}] "
                "[--output=FOLDER]"
            )
        else:
            network = argument
    return network or "sdnet", output


def _run(task: Task, step: Step, folder: Path) -> dict:
    script = task.folder / step.script
    key = _key(step, task)
    marker = folder / ".steps" / f"{key}.json"
    begun_before = folder / ".steps" / f"{key}.begun"
    if marker.is_file() and any((folder / step.results).glob("*")):
        print("    done before", flush=True)
        return read_json(marker)
    arguments = step.arguments
    if step.resumable:
        arguments += ("--resume" if begun_before.exists() else "--overwrite",)
    shown = f"python {script.relative_to(ROOT)} {' '.join(arguments)}"
    print(f"    {shown}", flush=True)
    with atomic_write(begun_before):
        pass
    begun = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"the step '{step.title}' failed with status {done.returncode}; its output is above, "
            "and running the same command again goes on from here"
        )
    record = {"command": shown, "seconds": round(time.monotonic() - begun, 1)}
    write_json(marker, record)
    return record


def _key(step: Step, task: Task) -> str:
    """Changes with the command and with any code or configuration it may use."""
    digest = hashlib.sha256(repr((step.script, step.arguments)).encode())
    sources = [ROOT / "model_utils", task.folder, *task.config_folders()[1:2]]
    for source in sources:
        for path in sorted(source.rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_page(task: Task, steps: list[Step], log: list[dict], folder: Path) -> Path:
    """index.html: every command with its time, figures and pictures."""
    parts = [
        "<!doctype html><meta charset=utf-8>",
        f"<title>{task.title} quick start</title>",
        "<style>body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
        "code{background:#eee;padding:.1em .3em;word-break:break-all}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;"
        "text-align:left}img{max-width:100%;border:1px solid #ccc;margin:.4em 0}</style>",
        f"<h1>{task.title} on generated data</h1>",
        "<p>These figures show that everything runs. They say nothing about real images.</p>",
    ]
    for step, record in zip(steps, log, strict=True):
        parts.append(f"<h2>{html.escape(step.title)}</h2>")
        parts.append(
            f"<p><code>{html.escape(record['command'])}</code><br>{record['seconds']} s</p>"
        )
        parts += _results(folder / step.results, folder)
    page = folder / "index.html"
    with atomic_write(page, "w") as stream:
        stream.write("\n".join(parts) + "\n")
    return page


def _results(results: Path, folder: Path) -> list[str]:
    parts = []
    for figures in sorted([*results.glob("metrics.json"), *results.glob("*.*.json")]):
        values = read_json(figures)
        rows = [
            f"<tr><th>{html.escape(str(k))}<td>{html.escape(_shown(v))}" for k, v in values.items()
        ]
        parts.append("<table>" + "".join(rows) + "</table>")
    for picture in sorted(results.glob("*.png")):
        name = picture.relative_to(folder).as_posix()
        parts.append(f"<p>{html.escape(picture.name)}<br><img src='{html.escape(name)}'></p>")
    return parts


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1:]))
