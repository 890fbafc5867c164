"""Files of a finished sweep that are cut short or changed are found, named, and made anew by the same command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from undisturbed import assert_same

from scl_ray.store import Store, open_store


@pytest.fixture
def out(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed sweep's ``--out`` folder, to be damaged."""
    copied = tmp_path / "runs"
    shutil.copytree(undisturbed, copied, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    return copied


def flip(path: str | Path, place: float) -> None:
    """Change one bit at *place*, a share of the file's length."""
    data = bytearray(Path(path).read_bytes())
    data[int(place * (len(data) - 1))] ^= 16
    Path(path).write_bytes(data)


def cut(path: str | Path, share: float) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(share * len(data))])


def written(root: Path) -> dict[str, int]:
    """When each file of results was written."""
    kinds = ("scores", "predictions", "curves", "samples", "checkpoints")
    return {str(path.relative_to(root)): path.stat().st_mtime_ns
            for kind in kinds for path in (root / kind).rglob("*") if path.is_file()}  # fmt: skip


def test_what_is_damaged_is_named_and_made_anew(out: Path, undisturbed: Path, start: Callable[..., object]) -> None:
    root, store = out / "faults", open_store(str(out), "faults")
    one, other = json.loads((root / "plan.json").read_text())["trials"]
    parts = {(kind, trial): [part.path for part in store.parts(kind, trial)]
             for kind in ("scores", "predictions", "curves", "samples") for trial in (one, other)}  # fmt: skip
    damaged = [
        parts["scores", one][1], parts["predictions", one][2], parts["samples", one][0],
        parts["scores", other][2], parts["curves", other][0], str(root / "samples/images.parquet"),
    ]  # fmt: skip
    # In a page of data, in the footer's checksum or behind it, in the last byte; and cut short.
    flip(damaged[0], 0.2)
    cut(damaged[1], 0.7)
    cut(damaged[2], 0.0)
    flip(damaged[3], 1.0)
    flip(damaged[4], 0.98)
    flip(damaged[5], 0.1)
    # The scores that were made together with the curves and maps that are lost.
    together = [parts["scores", one][0], parts["scores", other][0]]
    # One checkpoint is found by its size; the other when it is used, by its checksum.
    cut(root / "checkpoints" / one / "weights.safetensors", 0.9)
    flip(root / "checkpoints" / other / "weights.safetensors", 0.8)
    before = written(root)

    report = subprocess.run([sys.executable, "-m", "scl_ray.report", "--out", out, "--name", "faults"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert report.returncode == 2
    assert "run the sweep again" in report.stderr
    assert len(report.stderr.strip().splitlines()) == 1, report.stderr

    done = start("--out", out).wait()
    assert done.code == 0, done.out + done.error
    named = [line for line in done.out.splitlines() if line.startswith("damaged: ")]
    for path in [*damaged, *together]:
        assert sum(relative(path, store) in line for line in named) == 1, done.out
    assert any(f"checkpoints/{one}/" in line and "bytes for" in line for line in named), done.out
    assert len(named) == len(damaged) + len(together) + 1
    assert f"checkpoints/{other}: the checksum of weights.safetensors differs" in done.out
    fresh = {path for path, when in written(root).items() if before.get(path) != when}
    again = {relative(path, store) for path in [*damaged, *together]}
    # With the scores of the sample images come its curves and maps, the same as they were.
    again |= {relative(parts[kind, trial][0], store) for kind in ("curves", "samples") for trial in (one, other)}
    assert {path for path in fresh if not path.startswith("checkpoints/")} == again
    assert_same(out, undisturbed)


def relative(path: str, store: Store) -> str:
    return path.removeprefix(store.path(""))
