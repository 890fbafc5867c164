"""How many images fit into memory together, and going on with fewer where they did not."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

GIB = 2**30
CONTAINER = Path("/sys/fs/cgroup")  # says what a container may take

# By device: how many images, and how many pixels of images, are worth taking together. A core is busy with 64 images at
# 32x32 or 8 at 224x224, and slower with more, whose activations the C library hands back to the system each time; a GPU
# needs many more, where nothing but the launch of kernels would take the time.
_IMAGES = {"cpu": (64, 2**20), "cuda": (256, 2**22)}
_COPIES = {"cpu": (64, 2**20), "cuda": (4096, 2**22)}

# What an image takes, in units of the activations that its graph keeps: the graph of the shared pass, which stays, and
# a pass with gradients, for methods that compare each copy with another. Measured: 1.0, and 1.5 for each of the two.
_SHARED, _COPY = 1, 3

# What the allocators say that raise a plain RuntimeError.
_EXHAUSTED = ("can't allocate memory", "ALLOC_FAILED", "bad_alloc", "CUDA error: out of memory")

T = TypeVar("T")


class Size(NamedTuple):
    """How many images are explained together, and how many of their copies a pass takes."""

    images: int
    copies: int

    def smaller(self, times: int) -> "Size":
        return Size(max(1, self.images // times), max(1, self.copies // times))


def fitting(network: nn.Module, image: Tensor, bound: float | None, tasks: int) -> Size:
    """How many images like *image* (1,C,H,W) to take together, so that explaining them by *network* keeps to *bound*.

    bound: GiB; None: half of what is free on the image's device, a host's shared by as many *tasks* as this one.
    """
    kind, pixels = image.device.type, image.shape[-2] * image.shape[-1]
    room = bound * GIB if bound is not None else free(image.device) / (2 * (tasks if kind == "cpu" else 1))
    units = int(room / max(1, activations(network, image)))
    most, area = _IMAGES.get(kind, _IMAGES["cuda"])
    images = max(1, min(most, area // pixels, units // (_SHARED + _COPY)))
    most, area = _COPIES.get(kind, _COPIES["cuda"])
    return Size(images, max(1, min(most, area // pixels, (units - _SHARED * images) // _COPY)))


def activations(network: nn.Module, image: Tensor) -> int:
    """Bytes that *network* keeps of *image* (1,C,H,W) for a backward pass to it."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image.detach().requires_grad_())
    return sum(kept.values())


def free(device: torch.device) -> int:
    """Bytes that are free on *device*; on a CPU, of the host or of the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    host, container = Path("/proc/meminfo"), CONTAINER
    if host.exists():
        found += [1024 * int(line.split()[1]) for line in host.read_text().splitlines() if "MemAvailable" in line]
    if (container / "memory.max").exists() and (limit := (container / "memory.max").read_text().strip()) != "max":
        used = int((container / "memory.current").read_text())
        kept = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
        # What is kept of files that were read makes room when it is needed.
        found.append(int(limit) - used + int(kept["active_file"]) + int(kept["inactive_file"]))
    return max(0, min(found))


@contextmanager
def bounded(device: torch.device, bound: float | None) -> Iterator[None]:
    """On a GPU, an allocation beyond *bound* GiB of this process fails, and is made up for by a smaller batch."""
    if device.type != "cuda" or bound is None:
        yield
        return
    before = torch.cuda.get_per_process_memory_fraction(device.index)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(before, bound * GIB / total), device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device.index)


def in_batches(first: int, last: int, size: Size, work: Callable[[int, int, int], T]) -> Iterator[T]:
    """``work(start, stop, copies)`` for one batch after the other of the ranks *first* to *last*, inclusive.

    A batch that memory did not suffice for is done again by halves, and so are all after it. Raises MemoryError, in one
    sentence, when there is no room for one image.
    """
    start = first
    while start <= last:
        done = _tried(work, start, min(start + size.images, last + 1), size.copies)
        if done is not None:
            yield done
            start += size.images
        elif size == (1, 1):
            raise MemoryError("not even one image fits into memory with its explanations; raise "
                              "resources.evaluate.memory, or take smaller images or fewer methods")  # fmt: skip
        else:
            size = size.smaller(2)


def _tried(work: Callable[[int, int, int], T], start: int, stop: int, copies: int) -> T | None:
    """What *work* gives, or None where memory did not suffice; in a frame of its own, so that its tensors are gone."""
    try:
        return work(start, stop, copies)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def exhausted(error: BaseException) -> bool:
    """Whether *error* says that memory did not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in _EXHAUSTED)
