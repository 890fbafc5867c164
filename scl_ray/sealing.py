"""Bytes that certify themselves, so that a file that was cut short or changed is told from a whole one.

A Parquet file carries in its footer the SHA-256 of all its bytes, computed while the digest's own digits were zeros. It
stays one file, written at once, that every Parquet reader reads as it stands.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scl_ray.config import InputError

FOOTER = b"scl_ray"
UNSEALED = 1  # the schema of files from before there were checksums

_BEFORE = b'"checksum": "'
_BLANK = b"0" * 64
_PREFIX = b"sha256:"
_MAGIC = b"PAR1"
_CHUNK = 2**20


class Damaged(InputError):
    """A file is not as it was written: *what*, a clause that names it. The message adds the way out. *trial*: whose
    checkpoint it is, where it is one."""

    def __init__(self, what: str, trial: str | None = None) -> None:
        super().__init__(what)
        self.what, self.trial = what, trial

    def __str__(self) -> str:
        return f"{self.what}; run the sweep again, which makes it anew"


def to_parquet(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """*table* as a sealed Parquet file, whose footer holds *about* as JSON, with a ``schema`` beyond `UNSEALED`."""
    footer = json.dumps({**about, "checksum": _BLANK.decode()}).encode()
    # Floats hardly repeat, so a dictionary of them is longer than they are; split by bytes, their exponents pack.
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    encoding = {"use_dictionary": [name for name in table.column_names if name not in floats],
                "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT")}  # fmt: skip
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True, **encoding) as writer:
        writer.write_table(table)
        # Not in the table's own metadata, of which the footer would hold a second, encoded copy.
        writer.add_key_value_metadata({FOOTER: footer})
    data = bytearray(sink.getvalue())
    # The footer is a file's end, so the last place that looks like the digest's is the digest's.
    place = data.rfind(_BEFORE) + len(_BEFORE)
    data[place : place + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def footer(file: BinaryIO) -> dict[str, Any] | None:
    """What `to_parquet` was told *about* a file, or None where its footer cannot be read."""
    try:
        return dict(json.loads((pq.read_metadata(file).metadata or {}).get(FOOTER, b"{}")))
    except (OSError, ValueError, TypeError):  # what pyarrow and json make of changed bytes
        return None


def problem(file: BinaryIO) -> str | None:
    """What is wrong with a Parquet file that `to_parquet` made, as a clause, or None. It is read whole, in pieces.

    A file from before there were checksums passes when its footer can be read.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read()
    if not end.endswith(_MAGIC):
        return "it is cut short"
    start = max(0, size - 8 - int.from_bytes(end[:4], "little"))
    file.seek(start)
    place = file.read().rfind(_BEFORE)
    if place < 0:
        file.seek(0)
        about = footer(file)
        return None if about is not None and about.get("schema", UNSEALED) == UNSEALED else "its footer is damaged"
    place += start + len(_BEFORE)
    file.seek(place)
    return None if file.read(len(_BLANK)) == _digest(file, place).encode() else "its checksum differs"


def _digest(file: BinaryIO, place: int) -> str:
    """The SHA-256 of a file whose own digest, at *place*, is taken for zeros."""
    found = hashlib.sha256()
    file.seek(0)
    left = place
    while left and (piece := file.read(min(_CHUNK, left))):
        found.update(piece)
        left -= len(piece)
    found.update(_BLANK)
    file.seek(place + len(_BLANK))
    while piece := file.read(_CHUNK):
        found.update(piece)
    return found.hexdigest()


def seal(data: bytes) -> bytes:
    """*data* behind its checksum."""
    return _PREFIX + hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def unseal(sealed: bytes) -> bytes | None:
    """What was given to `seal`, or None where it is not whole. A zip file from before there were checksums passes."""
    if sealed.startswith(b"PK"):
        return sealed
    head, _, data = sealed.partition(b"\n")
    return data if head == _PREFIX + hashlib.sha256(data).hexdigest().encode() else None
