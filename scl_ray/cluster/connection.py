"""Connecting to Ray: an embedded one of this process, or the cluster at an address; what its nodes offer."""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by Ray when it is first imported.
os.environ["RAY_AUTH_MODE"] = "token"  # always: without it whoever reaches the ports runs code
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task without a GPU sees none

import ray
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from scl_ray import storage
from scl_ray.config import InputError, Resources, Slot
from scl_ray.plan import tasks_on
from scl_ray.store import local_folder, open_store

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

ANSWER_WITHIN = 8.0  # seconds that a cluster's head may take to say that it is there


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray for the time of the block: to the cluster at *address*, or to a local Ray when it is None."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        try:
            ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray has no narrower one for processes that are not there in half a minute
            reason = str(error).partition(". ")[0].strip()
            raise InputError(f"a local Ray did not start ({reason}); free processors and memory of this machine, and "
                             "run the same command again") from error  # fmt: skip
    else:
        try:
            ray.init(address=resolve(address), **quiet)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--address {address}: the cluster refused ({reason}); use the token and the versions of "
                             "Ray and Python that its head was started with") from error  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def resolve(address: str) -> str:
    """``host:port`` of the cluster at *address*, ``auto`` being the one this machine belongs to.

    Raises InputError when none answers, since Ray itself would try again for minutes.
    """
    if address.startswith("ray://"):
        raise InputError(f"--address {address}: Ray Client is not served; run on the cluster with `ray job submit "
                         "--address http://HEAD:8265 -- python sweeps/full_grid.py --address auto`")  # fmt: skip
    start = "start one with `ray start --head`, or leave --address out for a local Ray"
    try:
        # Ray has no public call that says which cluster `auto` means without also connecting to it.
        found = canonicalize_bootstrap_address_or_die(address)
        is_there = answers(found)
    except (ConnectionError, ValueError, OSError) as error:
        raise InputError(f"--address {address}: no Ray cluster was found; {start}") from error
    if not is_there:
        raise InputError(f"--address {address}: no Ray cluster answers at {found}; {start}")
    return found


def answers(address: str) -> bool:
    """Whether a gRPC server, as a Ray head is, listens at ``host:port``: it answers HTTP/2's preface with SETTINGS."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN) as connection:
            connection.settimeout(ANSWER_WITHIN)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            head = connection.recv(9)
    except OSError:
        return False
    return len(head) >= 4 and head[3] == 4


def task_options(slot: Slot) -> dict[str, Any]:
    """Options of a remote task on one slot, outside the placement group of the coordinator that starts it.

    Ray never retries by itself: the coordinator does, a bounded number of times.
    """
    outside: Any = None
    return {
        "num_cpus": slot.cpus,
        "num_gpus": slot.gpus if ray.cluster_resources().get("GPU", 0) else 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=outside),
        "max_retries": 0,
    }


def slots(slot: Slot) -> int:
    """How many tasks of this kind the cluster runs at once. Raises InputError when no node can run even one."""
    asked = task_options(slot)
    total = slots_on([node for node in ray.nodes() if node["Alive"]], asked)
    if not total:
        gpus = f" and {slot.gpus:g} GPUs" if asked["num_gpus"] else ""
        raise InputError(f"resources: no node of the cluster has {slot.cpus} CPUs{gpus} for one task; "
                         "lower resources.train and resources.evaluate")  # fmt: skip
    return total


def slots_on(nodes: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> int:
    """How many tasks with these *options* the *nodes* run at once."""
    total = 0
    for has in (node["Resources"] for node in nodes):
        fits = int(has.get("CPU", 0) // options["num_cpus"])
        if options["num_gpus"]:
            fits = min(fits, tasks_on(has.get("GPU", 0), options["num_gpus"]))
        total += fits
    return total


def check_resources(resources: Resources) -> int:
    """The number of training slots. Raises InputError when training or evaluation fits on no node."""
    slots(resources.evaluate)
    return slots(resources.train)


def check_storage(out: str, name: str) -> None:
    """Raise InputError unless every node of the cluster can read and write the sweep *name* below *out*."""
    store, probe = open_store(out, name), f".probe-{uuid.uuid4().hex}"
    way_out = "give a folder that every node mounts, or s3://…"
    if local_folder(out) is None:
        way_out = "give every node the storage's address and credentials, before Ray is started there"
    store.write(probe, probe.encode())
    try:
        for node, problem in _on_every_node(_uses, out, name, probe):
            raise InputError(f"--out {out}: node {node} cannot use it ({problem}); {way_out}")
    finally:
        store.remove(probe)


def check_images(dataset: "Dataset") -> None:
    """Raise InputError unless every node of the cluster sees the files that the dataset's images stay in, if any.

    It looks at the first and the last of each split: enough to tell a folder that is not there, or is another one.
    """
    from scl_ray.datasets.files import ImageFiles

    splits = (dataset.train_images, dataset.validation_images, dataset.test_images)
    files = [split.root / split.names[n] for split in splits if isinstance(split, ImageFiles) for n in (0, -1)]
    if not files:
        return
    sizes = {str(path): path.stat().st_size for path in files}
    for node, problem in _on_every_node(_sees, sizes):
        raise InputError(f"dataset.root: node {node} does not see the images in {dataset.files_root} ({problem}); "
                         "put them into a folder that every node mounts")  # fmt: skip


def _on_every_node(look: Any, *arguments: Any) -> Iterator[tuple[str, str]]:
    """What the remote function *look* finds wrong, with the node's address. The nodes look at the same time."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            looks = look.options(num_cpus=0, scheduling_strategy=here, max_retries=1)
            found.append((node, looks.remote(*arguments)))
    for node, answer in found:
        try:
            problem = ray.get(answer, timeout=60)
        except ray.exceptions.RayError as error:
            if not _is_alive(node["NodeID"]):  # it has died meanwhile: it is none of the cluster's
                continue
            problem = str(error).splitlines()[0]
        if problem:
            yield node["NodeManagerAddress"], problem


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


@ray.remote
def _uses(out: str, name: str, probe: str) -> str | None:
    try:
        # By its own means, as every worker there: of credentials the driver sends none.
        store = open_store(out, name)
        if store.read(probe) != probe.encode():
            return "it holds other files there"
        answer = f"{probe}-{uuid.uuid4().hex}"
        store.write(answer, b"")
        store.remove(answer)
    except (OSError, InputError) as error:
        return storage.reason(error)
    return None


@ray.remote
def _sees(sizes: dict[str, int]) -> str | None:
    """*sizes*: of files, in bytes, by their path."""
    for path, size in sizes.items():
        try:
            if Path(path).stat().st_size != size:
                return f"{path} is another file there"
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return None
