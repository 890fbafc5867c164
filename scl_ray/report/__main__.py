"""``python -m scl_ray.report --out runs --name demo``: build the report of a sweep again, from its store alone."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from scl_ray import storage
from scl_ray.report import build, summary_table
from scl_ray.results import open_results


def main(command_line: Sequence[str] | None = None) -> int:
    """Build the report and print the summary. Exit codes: 0 written, 1 the storage is away, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m scl_ray.report", description=__doc__)
    parser.add_argument("--out", default="runs", help="folder or fsspec URI that holds the sweep (default: runs)")
    parser.add_argument("--name", required=True, help="the sweep's name")
    parser.add_argument("--compare", metavar="OTHER", help="instead set the sweep OTHER beside it, on one page")
    arguments = parser.parse_args(command_line)
    console = Console(markup=False)  # brackets belong to specs
    try:
        if arguments.compare:
            from scl_ray.report import side_by_side

            page = side_by_side.build(arguments.out, arguments.name, arguments.compare)
            console.print(f"Comparison: {page}", soft_wrap=True)
            return 0
        results = open_results(arguments.out, arguments.name)
        console.print(summary_table(results))
        console.print(f"Report: {results.store.uri(build(results).index)}", soft_wrap=True)
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {storage.told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
