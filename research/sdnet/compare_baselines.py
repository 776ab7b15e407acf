"""Measure hand-crafted optical/SAR similarities on a patch archive: see ``--help``."""

import argparse
import sys
from pathlib import Path

from model_utils.errors import UserError
from model_utils.files import write_json

sys.path.insert(0, str(Path(__file__).resolve().parent))
from src.baselines import BASELINES, compare, table_lines
from src.patches import find_archive, open_patches


def main() -> int:
    """Print the table and write it as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataroot", required=True, help="folder of the archives")
    parser.add_argument("--split", default="test", help="archive name without suffix")
    parser.add_argument("--methods", default="", help=f"comma list of {', '.join(BASELINES)}")
    parser.add_argument("--out", default="", help="JSON file with all figures")
    arguments = parser.parse_args()
    try:
        archive = open_patches(find_archive(arguments.dataroot, arguments.split))
        table = compare(archive, [name for name in arguments.methods.split(",") if name])
        print("\n".join(table_lines(table)))
        if arguments.out:
            write_json(arguments.out, {"archive": archive.path, "methods": table})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
