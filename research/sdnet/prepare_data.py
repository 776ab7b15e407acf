"""Cut optical/SAR patch archives out of registered images: see ``--help``."""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from model_utils.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from src.preparing import PrepareOptions, convert, list_pairs, prepare


def parser() -> argparse.ArgumentParser:
    """Command line: where the images are, where archives go, and every PrepareOptions field."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--root", default="", help="SEN1-2, or folder with opt/ and sar/")
    result.add_argument("--optical", default="", help="sub-folder of the optical images")
    result.add_argument("--sar", default="", help="sub-folder of the SAR images")
    result.add_argument("--pair_list", default="", help="text file: optical sar [scene]")
    result.add_argument("--scene_pattern", default="", help="regular expression: name -> scene")
    result.add_argument("--out", required=True, help="output folder; a file with --convert")
    result.add_argument("--convert", default="", help="archive to rewrite in another format")
    for field in dataclasses.fields(PrepareOptions):
        result.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return result


def main() -> int:
    """Prepare or convert; returns the exit status."""
    arguments = vars(parser().parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fields = {field.name for field in dataclasses.fields(PrepareOptions)}
    options = PrepareOptions(**{key: arguments[key] for key in fields})
    try:
        if arguments["convert"]:
            print(f"{convert(arguments['convert'], arguments['out'])} rows -> {arguments['out']}")
            return 0
        where = ("root", "optical", "sar", "pair_list", "scene_pattern")
        prepare(list_pairs(*(arguments[key] for key in where)), arguments["out"], options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
