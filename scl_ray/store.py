"""The store of a sweep: records, checkpoints and Parquet parts below ``<out>/<sweep name>``.

A part file is either whole or absent. Its name says which ranks it holds, its footer which cells; together they say
what is finished, and what is missing is what is wanted minus what is held.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from scl_ray import sealing, storage
from scl_ray.config import Cell, InputError
from scl_ray.parts import Part, Shard, Versioned, evaluation, missing_shards, parts_of, rows_of
from scl_ray.sealing import Damaged
from scl_ray.storage import StorageError, open_filesystem

SCHEMA = 2  # of records, plans and parts; 1 had no checksums
KINDS = ("scores", "predictions", "curves", "samples")
FAILURES = "failures.json"  # of the last run that came to its end: trial to reason

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """Where one sweep's results lie: a folder *root* on the fsspec filesystem *fs*."""

    fs: fsspec.AbstractFileSystem
    root: str
    _cells: dict[str, tuple[Versioned, ...]] = field(default_factory=dict, compare=False, repr=False)
    _written: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def uri(self, full: str) -> str:
        """The *full* path as users write it: of a remote storage with its protocol."""
        return full if isinstance(self.fs, LocalFileSystem) else str(self.fs.unstrip_protocol(full))

    @property
    def name(self) -> str:
        """The store, as users know it."""
        return self.uri(self.root)

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all. Raises StorageError, naming it, when that has not worked for long."""
        full = self.path(path)
        try:
            if isinstance(self.fs, LocalFileSystem):
                storage.retried(_write_whole, full, data)
            else:
                self.fs.pipe_file(full, data)
        except OSError as error:
            raise StorageError(f"{self.uri(full)}: {storage.reason(error)}") from error
        self._written["bytes"] += len(data)

    @property
    def written(self) -> int:
        """Bytes that were written through this object and those that it is a copy of."""
        return self._written["bytes"]

    def read(self, path: str) -> bytes | None:
        """The file's content, or None where there is no such file."""
        try:
            return self._content(self.path(path))
        except FileNotFoundError:
            return None

    def _content(self, full: str) -> bytes:
        return bytes(self._patiently(_read_whole if isinstance(self.fs, LocalFileSystem) else self.fs.cat_file, full))

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder. fsspec's own answer takes a disk that is away for one without it."""
        try:
            self._patiently(self.fs.info, self.path(path))
        except FileNotFoundError:
            return False
        return True

    def _patiently(self, operation: Callable[..., T], full: str, **kwargs: Any) -> T:
        """``operation(full, **kwargs)``, again while it fails with an error that passes. Raises FileNotFoundError, or
        StorageError, which names the file."""
        try:
            if isinstance(self.fs, LocalFileSystem):
                return storage.retried(operation, full, **kwargs)
            return operation(full, **kwargs)  # it has the patience by itself
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), full) from error
        except OSError as error:
            raise StorageError(f"{self.uri(full)}: {storage.reason(error)}") from error

    def remove(self, path: str) -> None:
        """Remove a file or a folder, if it is there. Raises StorageError, naming it, where it stays."""
        full = self.path(path)
        try:
            if isinstance(self.fs, LocalFileSystem):
                storage.retried(_remove_whole, full)
            else:
                self.fs.rm(full, recursive=True)
        except (FileNotFoundError, NotADirectoryError):  # another process was faster
            return
        except OSError as error:
            raise StorageError(f"{self.uri(full)}: cannot be removed: {storage.reason(error)}") from error

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False).encode())

    def read_json(self, path: str) -> Any | None:
        """What the file holds, or None where there is no such file. Raises InputError where it holds something else."""
        data = self.read(path)
        return None if data is None else self._json(path, data)

    def _json(self, path: str, data: bytes) -> Any:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise InputError(
                f"{self.uri(self.path(path))}: is not JSON ({error}); remove it and run the sweep again"
            ) from error
        _check_schema(self.uri(self.path(path)), value)
        return value

    def write_table(self, path: str, table: pa.Table, about: Mapping[str, Any] | None = None) -> None:
        """Write *table* as Parquet with its checksum; the footer says what it is *about*."""
        self.write(path, sealing.to_parquet(table, {"schema": SCHEMA, **(about or {})}))

    def problem(self, path: str) -> str | None:
        """What is wrong with the Parquet file at the full *path*, as a clause, or None. It is read whole."""
        if isinstance(self.fs, LocalFileSystem):
            return self._patiently(_problem_on_disk, path)
        return sealing.problem(io.BytesIO(self._content(path)))  # in one request

    def read_table(self, path: str) -> pa.Table:
        """The Parquet file at the full *path*. Raises Damaged where it is not as it was written."""
        data = self._content(path)
        if why := sealing.problem(io.BytesIO(data)):
            raise Damaged(f"{self.uri(path)}: {why}")
        return pq.read_table(pa.BufferReader(data))

    def remove_leftovers(self) -> None:
        """Remove what a killed writer left of files it had not finished. Only for the sweep's one writer."""
        if isinstance(self.fs, LocalFileSystem):
            for partial in Path(self.root).rglob(".*.partial"):
                partial.unlink(missing_ok=True)

    # -- trials ---------------------------------------------------------------------------------------------------

    def record(self, trial: str) -> dict[str, Any] | None:
        """The trial's record, ``trials/<trial>.json``, or None where it has none."""
        return self.read_json(f"trials/{trial}.json")

    def records(self, trials: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The records of those of *trials* that have one; many at once where each read is a journey."""
        if isinstance(self.fs, LocalFileSystem):
            found = {trial: self.record(trial) for trial in trials}
            return {trial: record for trial, record in found.items() if record is not None}
        paths = {trial: self.path("trials", f"{trial}.json") for trial in trials}
        data = self.fs.cat(list(paths.values()), on_error="omit")
        held = {trial: data[path] for trial, path in paths.items() if path in data}
        return {trial: self._json(f"trials/{trial}.json", text) for trial, text in held.items()}

    def write_record(self, trial: str, record: Mapping[str, Any]) -> None:
        """Write what is known of a trial. Whatever becomes of it, the record goes on saying whose its results are: the
        weights' that it was last trained to."""
        if "weights_sha256" not in record and (weights := self._weights(trial)):
            record = {**record, "weights_sha256": weights}
        self.write_json(f"trials/{trial}.json", {"schema": SCHEMA, "trial": trial, **record})

    def _weights(self, trial: str) -> str | None:
        """The SHA-256 of the weights whose results the trial's are, where that is known."""
        return (self.record(trial) or {}).get("weights_sha256")

    def write_checkpoint(self, trial: str, files: Mapping[str, bytes]) -> str:
        """Write a checkpoint's files. Returns the SHA-256 of its weights, which belongs into the trial's record.

        A trial that is trained again, its first checkpoint being lost or damaged, keeps its results if its weights are
        the same again; values of two networks never mix.
        """
        weights = hashlib.sha256(files["weights.safetensors"]).hexdigest()
        if self._weights(trial) != weights:
            for kind in KINDS:
                self.remove(f"{kind}/{trial}")
            # Last, since it says what they were; and before the checkpoint, of which it says nothing true.
            self.remove(f"trials/{trial}.json")
        # checkpoint.json is the first to go and the last to be written: where it is, the checkpoint is whole.
        self.remove(f"checkpoints/{trial}/checkpoint.json")
        for name in sorted(files, key=lambda name: name == "checkpoint.json"):
            self.write(f"checkpoints/{trial}/{name}", files[name])
        return weights

    def read_checkpoint(self, trial: str) -> dict[str, bytes]:
        """A checkpoint's files. Raises Damaged where they are not as they were written."""
        folder, names = self.path("checkpoints", trial), ("weights.safetensors", "checkpoint.json")
        try:
            files = {name: self._content(f"{folder}/{name}") for name in names}
        except FileNotFoundError as error:
            raise Damaged(f"{self.uri(folder)}: one of its two files is missing", trial) from error
        if why := _problem(files["checkpoint.json"], files["weights.safetensors"]):
            raise Damaged(f"{self.uri(folder)}: {why}", trial)
        return files

    def drop_checkpoint(self, trial: str) -> None:
        """Have a trial trained again: without its checkpoint.json, a checkpoint counts as lost."""
        self.remove(f"checkpoints/{trial}/checkpoint.json")

    def checkpoint_problem(self, trial: str, *, is_read: bool = False) -> str | None:
        """What is wrong with a checkpoint, as a clause, as far as its size tells, or its bytes where it *is_read*."""
        written, weights = self.read(f"checkpoints/{trial}/checkpoint.json"), f"checkpoints/{trial}/weights.safetensors"
        if written is None:
            return None
        try:
            if is_read:
                return _problem(written, self._content(self.path(weights)))
            size = json.loads(written).get("weights_bytes")
            found = self._patiently(self.fs.size, self.path(weights))
        except ValueError:
            return "checkpoint.json is damaged"
        except FileNotFoundError:
            return "weights.safetensors is missing"
        return None if size in (None, found) else f"weights.safetensors has {found:,} bytes for {size:,}"

    def write_resume(self, trial: str, data: bytes) -> None:
        """Keep what resuming a trial's training takes, behind its checksum."""
        self.write(f"checkpoints/{trial}/resume.pt", sealing.seal(data))

    def read_resume(self, trial: str) -> bytes | None:
        """What resuming takes, or None where there is nothing or it is damaged: training then starts anew."""
        sealed = self.read(f"checkpoints/{trial}/resume.pt")
        return None if sealed is None else sealing.unseal(sealed)

    def is_trained(self, trial: str) -> bool:
        record = self.record(trial)
        return (
            record is not None and record["status"] == "trained" and self.exists(f"checkpoints/{trial}/checkpoint.json")
        )

    def trained(self, trials: Sequence[str]) -> set[str]:
        """Those of *trials* that are trained; told of all at once where each answer is a journey."""
        if isinstance(self.fs, LocalFileSystem):
            return {trial for trial in trials if self.is_trained(trial)}
        whole = {path.rsplit("/", 2)[-2] for path in self.fs.find(self.path("checkpoints"))
                 if path.endswith("/checkpoint.json")}  # fmt: skip
        records = self.records(trials)
        return {trial for trial, record in records.items() if record["status"] == "trained" and trial in whole}

    # -- parts ----------------------------------------------------------------------------------------------------

    def parts(self, kind: str, trial: str) -> list[Part]:
        """The whole parts of one trial; *kind* is ``scores``, ``predictions``, ``curves`` or ``samples``."""
        try:
            return parts_of(self._patiently(self.fs.ls, self.path(kind, trial), detail=False))
        except FileNotFoundError:
            return []

    def parts_by_trial(self, kind: str, trials: Iterable[str]) -> dict[str, list[Part]]:
        """The whole parts of each of *trials*; by one listing of all where each listing is a journey."""
        if isinstance(self.fs, LocalFileSystem):
            return {trial: self.parts(kind, trial) for trial in trials}
        folders: dict[str, list[str]] = defaultdict(list)
        for name in self.fs.find(self.path(kind)):
            folders[name.rsplit("/", 2)[-2]].append(name)
        return {trial: parts_of(folders[trial]) for trial in trials}

    def cells(self, part: Part) -> tuple[Versioned, ...]:
        """The cells that a part's footer lists; parts of one evaluation hold the same, so one footer is read.

        Raises Damaged where it cannot be read.
        """
        if part.holds not in self._cells:
            with self._patiently(self.fs.open, part.path, mode="rb") as file:
                footer = sealing.footer(file)
            if footer is None or "cells" not in footer:
                raise Damaged(f"{self.uri(part.path)}: its footer is damaged")
            _check_schema(self.uri(part.path), footer)
            self._cells[part.holds] = tuple(Versioned(Cell(*names), version) for *names, version in footer["cells"])
        return self._cells[part.holds]

    def write_part(self, kind: str, trial: str, holds: str, first: int, last: int, table: pa.Table,
                   cells: Sequence[Versioned] = ()) -> None:  # fmt: skip
        """Write one part; the ``trial`` column and the footer are added here."""
        table = table.add_column(0, "trial", pa.repeat(pa.scalar(trial), table.num_rows))
        # What tells rows apart is always there, and declared so it is read faster: only what is measured may lack.
        fields = [field.with_nullable(pa.types.is_floating(field.type) or pa.types.is_nested(field.type))
                  for field in table.schema]  # fmt: skip
        about = {"trial": trial, "holds": holds, "first": first, "last": last,
                 "cells": [[*v.cell, v.version] for v in cells]}  # fmt: skip
        self.write_table(f"{kind}/{trial}/{holds}-{first:06d}-{last:06d}.parquet", table.cast(pa.schema(fields)), about)

    def missing(self, trial: str, wanted: Sequence[Versioned], readouts: Sequence[str], images: int,
                shard_images: int, save_maps: bool = False,
                parts: Mapping[str, Sequence[Part]] | None = None) -> list[Shard]:  # fmt: skip
        """What is to be computed for a trial: wanted minus held, as ranges cut on multiples of *shard_images*. *parts*:
        the trial's, by kind, where they are known."""
        if parts is None:
            parts = {kind: self.parts(kind, trial) for kind in ("scores", "predictions", "samples")}
        held: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for part in parts["scores"]:
            for versioned in self.held(part):
                held[versioned].append((part.first, part.last))
        for part in parts["predictions"]:
            held[part.holds].append((part.first, part.last))
        if save_maps:
            for part in parts["samples"]:
                for versioned in self.held(part):
                    if versioned in wanted:
                        held["map", versioned.cell.method].append((part.first, part.last))
        return missing_shards(held, wanted, readouts, images, shard_images, save_maps)

    def held(self, part: Part) -> tuple[Versioned, ...]:
        """The cells of a part; none where its footer is damaged."""
        try:
            return self.cells(part)
        except Damaged:
            return ()

    def remove_superseded(self, trials: Iterable[str], current: Iterable[Versioned]) -> None:
        """Remove the *trials'* scores of older versions of the *current* cells, all of which must be held."""
        version = {v.cell: v.version for v in current}
        for kind in ("scores", "curves", "samples"):
            for trial, parts in self.parts_by_trial(kind, trials).items():
                for part in parts:
                    cells = self.cells(part)
                    kept = [v for v in cells if version.get(v.cell, v.version) == v.version]
                    if len(kept) < len(cells):
                        self.keep(kind, trial, part, kept, part.last)

    def keep(self, kind: str, trial: str, part: Part, cells: Sequence[Versioned], last: int,
             images: Sequence[int] | None = None) -> None:  # fmt: skip
        """Have a part hold no more than *cells*, up to the rank *last*; without cells it goes. *images*: those up to
        *last*, where this is less than the part holds. Raises Damaged where it is not as it was written."""
        if cells:
            table = rows_of(self.read_table(part.path).drop_columns("trial"), cells)
            table = table if images is None else table.filter(pc.field("image").isin(images))
            self.write_part(kind, trial, evaluation(cells), part.first, last, table, cells)
        self._patiently(self.fs.rm_file, part.path)


def open_store(out: str, name: str) -> Store:
    """The store of the sweep *name* below *out*, a folder or an fsspec URI. Raises InputError when *out* is neither."""
    fs, root = open_filesystem(out)
    return Store(fs, f"{root.rstrip('/')}/{name}")


def local_folder(out: str) -> Path | None:
    """The folder that *out* is on this machine, absolute, or None where it is a remote URI."""
    fs, root = open_filesystem(out)
    return Path(root).absolute() if isinstance(fs, LocalFileSystem) else None


def _read_whole(full: str) -> bytes:
    return Path(full).read_bytes()


def _remove_whole(full: str) -> None:
    if stat.S_ISDIR(os.lstat(full).st_mode):
        shutil.rmtree(full)
    else:
        os.remove(full)


def _problem_on_disk(path: str) -> str | None:
    with open(path, "rb") as file:
        return sealing.problem(file)


def _write_whole(full: str, data: bytes) -> None:
    folder, name = os.path.split(full)
    os.makedirs(folder, exist_ok=True)
    # Whoever reads the folder skips a name with a leading dot, should this process die before the rename.
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, full)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _check_schema(path: str, value: Any) -> None:
    """Raise InputError where a newer version of this code wrote *value*."""
    schema = value.get("schema", SCHEMA) if isinstance(value, dict) else SCHEMA
    if schema > SCHEMA:
        raise InputError(f"{path}: was written by a newer scl_ray (schema {schema}, this one reads up to {SCHEMA}); "
                         "upgrade scl_ray")  # fmt: skip


def _problem(about: bytes, weights: bytes) -> str | None:
    """What is wrong with a checkpoint's two files, as a clause. Those from before there were checksums pass."""
    try:
        wanted = json.loads(about).get("weights_sha256")
    except ValueError:
        return "checkpoint.json is damaged"
    if wanted in (None, hashlib.sha256(weights).hexdigest()):
        return None
    return "the checksum of weights.safetensors differs"
