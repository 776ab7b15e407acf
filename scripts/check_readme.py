"""Check that every command the READMEs print is run by CI or says why it is not.

A command block is a fenced block marked ``bash`` in README.md, README_CN.md or either of them in
a network's folder. It is run by ``--run`` in the folder of its README, in a copy of the
repository, unless an HTML comment right above it says what it needs that CI lacks::

    <!-- needs: ascend -->

The English and the Chinese README of a folder must show the same commands; comments may differ.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {
    "ascend": "Ascend cards",
    "gpu": "an NVIDIA GPU",
    "torch": "PyTorch, an optional extra",
    "data": "a public data set",
    "modelarts": "a ModelArts job",
    "clone": "the repository's public address",
    "docker": "Docker",
}
_FENCE = re.compile(r"^(?P<indent>\s*)```+(?P<language>[\w+-]*)\s*$")
_NEEDS = re.compile(r"^\s*<!--\s*needs:\s*(?P<what>.*?)\s*-->\s*$")
_COMMENT = re.compile(r"(^|\s+)#\s.*$")


class ReadmeError(Exception):
    """A README breaks a rule; the message names file and line."""


@dataclass(frozen=True)
class Block:
    """A command block.

    Attributes:
        file: the README, relative to the repository.
        line: line number of its opening fence, from 1.
        needs: keys of ``NEEDS``; empty for a block CI runs.
        text: the commands.
    """

    file: Path
    line: int
    needs: tuple[str, ...]
    text: str

    @property
    def commands(self) -> tuple[str, ...]:
        """The lines without comments, for comparing languages."""
        lines = (_COMMENT.sub("", line).rstrip() for line in self.text.splitlines())
        return tuple(line for line in lines if line)


def readmes(root: Path) -> list[Path]:
    """All READMEs that are checked, English before Chinese."""
    folders = [root, *sorted(path for path in (root / "research").glob("*") if path.is_dir())]
    return [
        folder / name
        for folder in folders
        for name in ("README.md", "README_CN.md")
        if (folder / name).is_file()
    ]


def blocks_of(file: Path, root: Path) -> Iterator[Block]:
    """The command blocks of one README.

    Raises:
        ReadmeError: an unclosed fence, an unknown need, or commands in a block not marked bash.
    """
    name = file.relative_to(root)
    lines = file.read_text(encoding="utf-8").splitlines()
    needs: tuple[str, ...] = ()
    index = 0
    while index < len(lines):
        note, fence = _NEEDS.match(lines[index]), _FENCE.match(lines[index])
        if note:
            needs = tuple(re.split(r"[,\s]+", note["what"]))
            unknown = [need for need in needs if need not in NEEDS]
            if unknown:
                raise ReadmeError(
                    f"{name}:{index + 1}: unknown need {unknown[0]!r}; known: {', '.join(NEEDS)}"
                )
        elif fence:
            end = index + 1
            while end < len(lines) and not lines[end].strip().startswith("```"):
                end += 1
            if end == len(lines):
                raise ReadmeError(f"{name}:{index + 1}: this block is never closed")
            if fence["language"] in ("sh", "shell", "console", "zsh"):
                raise ReadmeError(f"{name}:{index + 1}: mark command blocks as bash")
            if fence["language"] == "bash":
                text = textwrap.dedent("\n".join(lines[index + 1 : end])).strip()
                yield Block(name, index + 1, needs, text)
            needs, index = (), end
        elif lines[index].strip():
            needs = ()
        index += 1


def collect(root: Path) -> list[Block]:
    """All command blocks, after checking that languages agree.

    Raises:
        ReadmeError: a rule is broken.
    """
    if not (root / "README.md").is_file():
        raise ReadmeError("README.md is missing")
    found = {file.relative_to(root): list(blocks_of(file, root)) for file in readmes(root)}
    for english in [file for file in found if file.name == "README.md"]:
        chinese = english.with_name("README_CN.md")
        if chinese not in found:
            raise ReadmeError(f"{chinese} is missing beside {english}")
        _compare(english, found[english], chinese, found[chinese])
    return [block for blocks in found.values() for block in blocks]


def _compare(english: Path, first: Sequence[Block], chinese: Path, second: Sequence[Block]) -> None:
    for one, other in zip(first, second, strict=False):
        if (one.commands, one.needs) != (other.commands, other.needs):
            raise ReadmeError(
                f"{english}:{one.line} and {chinese}:{other.line} show different commands or needs"
            )
    if len(first) != len(second):
        longer = first if len(first) > len(second) else second
        block = longer[min(len(first), len(second))]
        raise ReadmeError(f"{block.file}:{block.line}: the other language lacks this block")


def copy_repository(root: Path, target: Path) -> None:
    """Copy what a clone would have, uncommitted work included, and share the environment."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    )
    for name in listing.stdout.decode().split("\0"):
        source = root / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    if (root / ".venv").is_dir():
        (target / ".venv").symlink_to((root / ".venv").resolve())


def run_blocks(blocks: Sequence[Block], root: Path, limit_s: float) -> None:
    """Run every runnable block once, in order, in a copy of the repository.

    Raises:
        ReadmeError: a block fails or takes longer than ``limit_s`` seconds.
    """
    done: set[tuple[Path, tuple[str, ...]]] = set()
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        copy = Path(folder) / root.name
        copy.mkdir()
        copy_repository(root, copy)
        # The copy's modules, though the environment's installation points to the original.
        environment = os.environ | {
            "PYTHONPATH": str(copy),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        for block in blocks:
            place = (block.file.parent, block.commands)
            if block.needs or place in done:
                continue
            done.add(place)
            print(f"== {block.file}:{block.line}\n{textwrap.indent(block.text, '$ ')}", flush=True)
            start = time.monotonic()
            try:
                status = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", block.text],
                    cwd=copy / block.file.parent,
                    env=environment,
                    timeout=limit_s,
                    stdin=subprocess.DEVNULL,
                ).returncode
            except subprocess.TimeoutExpired:
                raise ReadmeError(
                    f"{block.file}:{block.line}: still running after {limit_s:g} s"
                ) from None
            if status:
                raise ReadmeError(f"{block.file}:{block.line}: ended with exit status {status}")
            print(f"== done in {time.monotonic() - start:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show every block and its class")
    parser.add_argument("--run", action="store_true", help="run the runnable blocks")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to check")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a block may take")
    options = parser.parse_args(argv)
    try:
        blocks = collect(options.root.resolve())
        if options.list:
            for block in blocks:
                why = "needs " + ", ".join(block.needs) if block.needs else "run"
                print(f"{block.file}:{block.line}: {why}\n{textwrap.indent(block.text, '    ')}")
        runnable = sum(not block.needs for block in blocks)
        print(f"{len(blocks)} command blocks, {runnable} of them run by CI", flush=True)
        if options.run:
            run_blocks(blocks, options.root.resolve(), options.limit)
    except ReadmeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
