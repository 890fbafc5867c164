"""Runs a sweep: trains the grid's trials, explains and scores them, and reports.

    python sweeps/full_grid.py --config sweeps/demo.yaml            # on a local Ray in this process
    python sweeps/full_grid.py --address auto                       # on the cluster this machine belongs to
    python sweeps/full_grid.py --config sweeps/demo.yaml --status   # says where it stands, whoever runs it
    python sweeps/full_grid.py --config sweeps/demo.yaml --cancel   # stops it, from another terminal or machine
    python sweeps/full_grid.py --config sweeps/demo.yaml --prune    # lists what the configuration no longer wants

The same command again continues: what is finished is not computed again. Ctrl-C stops within ten seconds, twice at
once. Exit code 0: all done; 1: something failed and is named in the summary; 2: the input was refused; 130: stopped by
Ctrl-C or --cancel; 143: by SIGTERM.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from scl_ray import command, config, interruption
from scl_ray.config import InputError

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A user's own `module:callable` may lie beside the configuration or in the current folder.
    sys.path[:0] = [str(options.config.resolve().parent), str(Path.cwd())]
    return command.run(partial(_run, options))


def _run(options: argparse.Namespace, console: Console) -> int:
    if options.status and (options.dry_run or options.cancel or options.prune or options.address):
        raise InputError("--status: goes with none of --dry-run, --cancel, --prune and --address; it finds the sweep "
                         "by --out and its name")  # fmt: skip
    if options.cancel and (options.dry_run or options.address):
        raise InputError(
            "--cancel: goes with neither --dry-run nor --address; it finds the sweep by --out and its name"
        )
    if options.prune and (options.dry_run or options.cancel or options.address):
        raise InputError("--prune: goes with none of --dry-run, --cancel and --address; without --yes it only lists")
    if options.yes and not options.prune:
        raise InputError("--yes: only confirms --prune; leave it out")
    sweep = config.load(options.config, options.set, options.name)
    if options.status:
        from scl_ray import status

        status.describe(sweep, options.out, console)
        return 0
    if options.prune:
        from scl_ray.pruning import prune

        prune(sweep, options.out, console, remove=options.yes)
        return 0
    if options.cancel:
        from scl_ray.cancelling import cancel
        from scl_ray.store import open_store

        try:
            console.print(cancel(open_store(options.out, sweep.name)))
        except TimeoutError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if options.dry_run:
        from scl_ray.dry_run import describe

        describe(sweep, options.out, console)
        return 0
    from scl_ray.cluster.driver import run

    return run(sweep, options.out, options.address, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run a sweep over objective x temperature x backbone x seed; the same command again continues it."
    )
    parser.add_argument("--config", type=Path, default=HERE / "full_grid.yaml", help="the sweep (default: %(default)s)")
    parser.add_argument("--address", help="Ray cluster, HOST:PORT or auto (default: a local Ray in this process)")
    parser.add_argument("--out", default="runs", help="folder or fsspec URI for results (default: %(default)s)")
    parser.add_argument("--name", help="the sweep's name (default: the configuration's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=YAML",
                        help="override one setting, for example --set training.epochs=3")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long; write nothing")
    parser.add_argument("--status", action="store_true", help="say where the sweep stands, whoever runs it")
    parser.add_argument("--cancel", action="store_true", help="stop the process that runs this sweep, wherever it is")
    parser.add_argument("--prune", action="store_true",
                        help="list trials, checkpoints and parts that the configuration no longer wants")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="with --prune: remove them")
    return parser


if __name__ == "__main__":
    interruption.end(main())
