"""What runs on a slot: training one trial, and explaining and scoring one shard of its evaluation.

Plain functions, so that they also run without Ray. torch is imported inside them: coordinators import this module too,
and stay light without it.
"""

import contextlib
import io
import os
import platform
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import ray

from scl_ray import plugins, shards
from scl_ray.config import Trial
from scl_ray.parts import Shard
from scl_ray.store import Store

if TYPE_CHECKING:
    from scl_ray.checkpoint import Checkpoint
    from scl_ray.datasets import Dataset
    from scl_ray.given.checkpoint import GivenClassifier

KEEPING = 1 / 20  # of training's time, at most, goes into writing what resuming needs,
KEEPING_AT_ONCE = 1.0  # but for the first second of it


def train(
    store: Store,
    trial_id: str,
    trial: Trial,
    about: Mapping[str, Any],
    dataset: "Dataset",
    sources: Mapping[str, str],
    threads: int,
    comparable: bool = False,
) -> Iterator[dict[str, Any]]:
    """Train one trial, from the last epoch that was kept where there is one.

    Yields ``{}`` when it starts, ``{"earlier": …}`` with the metrics of epochs that another start has trained, its
    metrics after each epoch, and at the end ``{"slot_seconds": …, "bytes": …}``: what it took, and what it wrote. Then
    checkpoint and record lie in the store, and what resuming needed is gone. *about* is what the record says in any
    case. *comparable* is `training.fit`'s. Raises MemoryError when memory does not suffice.

    Of several processes that train the trial together, the first writes all this; each yields as often.
    """
    import torch

    from scl_ray import checkpoint, distributed, finishing, training

    yield {}
    rank, workers = distributed.rank_and_workers()
    entered, written = time.perf_counter(), store.written
    device = _prepare(sources, threads)
    # Read once for all of them: a shared folder may show one host what it does not show another yet.
    saved = distributed.of_the_first(store.read_resume(trial_id) if rank == 0 else None, device)
    progress: dict[str, Any] = {"state": None, "epochs": [], "seconds": 0.0}
    if saved is not None:
        progress = torch.load(io.BytesIO(saved), weights_only=True)
    state, epochs = progress["state"], progress["epochs"]
    yield {"earlier": list(epochs)}
    with _memory_of(device):
        # As if it had started when the time that was already spent began.
        started = time.perf_counter() - progress["seconds"]
        writing = took = 0.0
        for metrics, reached in training.fit(dataset, trial, device=device, state=state, comparable=comparable):
            state = reached
            epochs.append(metrics)
            seconds = time.perf_counter() - started
            if rank == 0 and _is_worth_keeping(writing, took, time.perf_counter() - entered):
                before = time.perf_counter()
                buffer = io.BytesIO()
                torch.save({"state": state, "epochs": epochs, "seconds": seconds}, buffer)
                store.write_resume(trial_id, buffer.getvalue())
                took = time.perf_counter() - before
                writing += took
            yield metrics
        if rank > 0:
            yield {"slot_seconds": 0.0}
            return
        trained, measured = finishing.finish(dataset, trial, state, device=device)
        weights = store.write_checkpoint(trial_id, checkpoint.to_files(trained))
        store.write_record(trial_id, {
            **about,
            "status": "trained",
            "checkpoint": f"checkpoints/{trial_id}",
            "weights_sha256": weights,
            "readouts": {protocol: trained.readout_name(protocol) for protocol in ("corrected", "published")},
            "epochs": epochs,
            "metrics": measured,
            "seconds": time.perf_counter() - started,
            "workers": workers,
            "host": socket.gethostname(),
            "node": _node(),
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "finished": time.strftime("%FT%TZ", time.gmtime()),
            "versions": {name: version(name) for name in ("scl_ray", "torch", "torchvision", "ray", "captum")},
        })  # fmt: skip
        store.remove(f"checkpoints/{trial_id}/resume.pt")
    yield {"slot_seconds": workers * (time.perf_counter() - entered), "bytes": store.written - written}


def _is_worth_keeping(writing: float, took: float, elapsed: float) -> bool:
    """Whether to write down what resuming needs, given the seconds that *writing* and the last one of it *took*.

    Epochs of a second would else spend a good part of it on waiting for the disk.
    """
    return writing + took <= KEEPING_AT_ONCE + KEEPING * elapsed


def train_together(work: Mapping[str, Any]) -> None:
    """`train` in one of a group's workers. *work* holds its arguments, the dataset as a reference in a list."""
    from ray.train import report

    (dataset,) = work["dataset"]
    for reached in train(**{**work, "dataset": ray.get(dataset)}):
        report(reached)


def evaluate(
    store: Store,
    trial_id: str,
    shard: Shard,
    dataset: "Dataset",
    checkpoint: Sequence[ray.ObjectRef],
    sources: Mapping[str, str],
    threads: int,
    memory: float | None = None,
    smaller: int = 1,
) -> dict[str, Any]:
    """Explain and score one shard and write its parts, the scores last. Returns what it took and where.

    *checkpoint* holds one reference, to the files of the trial's checkpoint. *memory* bounds what it takes, in GiB; by
    default tasks like this one, as many as the host has cores for, share it. So many times *smaller* than otherwise are
    its batches. Raises MemoryError when memory does not suffice.
    """
    started, written = time.perf_counter(), store.written
    device = _prepare(sources, threads)
    tasks = max(1, (os.cpu_count() or 1) // threads)
    with _memory_of(device):
        network = _checkpoint(checkpoint[0])
        shards.evaluate(store, trial_id, network, shard, dataset, device, memory, tasks, smaller)
    return {"slot_seconds": time.perf_counter() - started, "node": _node(), "bytes": store.written - written}


@contextlib.contextmanager
def _memory_of(device: str) -> Iterator[None]:
    """Around what takes much memory of *device*. Where it does not suffice, that is said as a MemoryError, which the
    coordinator knows without torch; and what is free at the end is given back, since a worker waits for its next task
    while another worker's is on the same GPU."""
    import torch

    from scl_ray.memory import exhausted

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or not exhausted(error):
            raise
        raise MemoryError(str(error).strip().splitlines()[0]) from error
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def _node() -> str | None:
    """The Ray node that this runs on; several may share a host."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


def _prepare(sources: Mapping[str, str], threads: int) -> str:
    import torch

    # The images are shared by all workers of a node, read-only; nothing here writes to them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    plugins.install(sources)
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # may be set only once in the life of a worker
        torch.set_num_interop_threads(1)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checkpoint(reference: ray.ObjectRef) -> "Checkpoint | GivenClassifier":
    """The network of a checkpoint's files. The last two stay: a worker sees shards of few trials in turn."""
    from scl_ray.checkpoint import from_files

    key = reference.hex()  # not the reference itself, which would keep the files in the node's shared memory
    if key not in _networks:
        if len(_networks) == 2:
            del _networks[next(iter(_networks))]
        _networks[key] = from_files(ray.get(reference))
    return _networks[key]


_networks: dict[str, "Checkpoint | GivenClassifier"] = {}  # by reference, the latest last
