"""Runs a command on a cluster that grows on demand: asks its autoscaler for slots, and begins when they are there.

    python sweeps/on_demand.py --slots 8 --cpus 4 --gpus 1 -- python sweeps/full_grid.py --address auto

A cluster that has shrunk to nothing offers no GPU, by which a sweep would go. After the first slot, the others are
waited for no longer than --patience. From then on the cluster follows the sweep alone: it grows while work waits and
shrinks when there is none. Exit code 2: not one slot came; otherwise the command's own.
"""

import argparse
import os
import signal
import sys
import threading
import time

from scl_ray.config import InputError

LOOK_EVERY = 2.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Configures Ray by its environment, so nothing imports Ray before it.
    from scl_ray.cluster import connection

    told_to_end = threading.Event()
    try:
        with connection.connected(options.address):
            # What was asked for stays until it is withdrawn. Ray, at its start, takes the signal for itself.
            signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
            _wait(options, told_to_end)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if told_to_end.is_set():
        return 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout.flush()
    os.execvp(options.command[0], options.command)


def _wait(options: argparse.Namespace, told_to_end: threading.Event) -> None:
    """Ask for the slots until they are there, or this process is *told_to_end*. Raises InputError when none comes."""
    from ray.autoscaler.sdk import request_resources

    slot = {"CPU": options.cpus, "GPU": options.gpus}
    slot = {resource: amount for resource, amount in slot.items() if amount}
    begin = time.monotonic()
    first: float | None = None
    shown = None
    request_resources(bundles=[slot] * options.slots)
    try:
        while (there := slots(slot)) < options.slots:
            now = time.monotonic()
            if shown != there:
                print(f"{there} of {options.slots} slots are there", flush=True)
                shown = there
            if there and first is None:
                first = now
            if first is not None and now - first > options.patience:
                break
            if first is None and now - begin > options.within:
                needs = " and ".join(f"{amount:g} {resource}" for resource, amount in slot.items())
                raise InputError(f"no node with {needs} has joined the cluster within {options.within:g} s; "
                                 "look at its autoscaler (`ray status`), or give --within more")  # fmt: skip
            if told_to_end.wait(LOOK_EVERY):
                return
    finally:
        request_resources(bundles=[])
    print(f"{there} of {options.slots} slots are there; beginning", flush=True)


def slots(slot: dict[str, float]) -> int:
    """How many times the nodes that are there offer the resources of one *slot*."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(resource, 0) / amount) for resource, amount in slot.items()) for has in nodes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Ask a cluster's autoscaler for slots, wait for them, and run a command that will use them."
    )
    parser.add_argument("--slots", type=_positive, required=True, help="how many tasks the cluster may grow to")
    parser.add_argument("--cpus", type=_positive, default=1, help="CPUs of one (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one (default: none)")
    parser.add_argument("--address", default="auto", help="Ray cluster, HOST:PORT or auto (default: %(default)s)")
    parser.add_argument("--within", type=float, default=1800, help="seconds for the first to come (default: 1800)")
    parser.add_argument("--patience", type=float, default=300,
                        help="seconds for the others to come after the first (default: 300)")  # fmt: skip
    parser.add_argument("command", nargs="+", help="after --, what to run")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
