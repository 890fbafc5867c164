"""Fetches a sweep's data set and checks it, so that many machines find it where it is to be.

    python -m scl_ray.datasets --config sweeps/full_grid.yaml --set dataset.root=/shared/data

What is there already is not fetched again. Exit code 2: it cannot be used, and why.
"""

import argparse
import sys
from pathlib import Path

from scl_ray import config, datasets
from scl_ray.config import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scl_ray.datasets", description="Fetch a sweep's data set and check it."
    )
    parser.add_argument("--config", type=Path, required=True, help="the sweep, as of sweeps/full_grid.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=YAML", help="override one setting")
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(options.config.resolve().parent), str(Path.cwd())]  # where a data set of the user's own may lie
    try:
        sweep = config.load(options.config, options.set)
        dataset = datasets.load(sweep.dataset)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    splits = {"train": dataset.train_labels, "validation": dataset.validation_labels, "test": dataset.test_labels}
    counts = ", ".join(f"{len(labels):,} {split}" for split, labels in splits.items())
    print(f"{sweep.dataset.name}: {counts} images, {dataset.fingerprint[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
