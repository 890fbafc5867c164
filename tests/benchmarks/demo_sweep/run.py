"""Measures `make sweep`'s command: wall time, what became of the slots' time, and the time of running it again.

python tests/benchmarks/demo_sweep/run.py [--repeat 3] > tests/benchmarks/demo_sweep/figures.json
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

COMMAND = ["sweeps/full_grid.py", "--config", "sweeps/demo.yaml"]
USAGE = re.compile(r"(?:(\d+):)?(\d+):(\d+) on (\d+) slots.*?: (\d+)% training, (\d+)% evaluating, (\d+)% idle")


def timed(out: str) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *COMMAND, "--out", out], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def once() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        wall, printed = timed(out)
        again, _ = timed(out)
    usage = USAGE.search(printed)
    if usage is None:
        raise SystemExit(f"the command did not say what became of the slots:\n{printed}")
    hours, minutes, seconds, slots, train, evaluate, idle = (float(part or 0) for part in usage.groups())
    trials = 3600 * hours + 60 * minutes + seconds
    return {
        "wall_s": round(wall, 1),
        "trials_s": trials,
        "training_slot_s": round(trials * slots * train / 100),
        "evaluation_slot_s": round(trials * slots * evaluate / 100),
        "idle_slot_percent": idle,
        "again_wall_s": round(again, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    runs = [once() for _ in range(parser.parse_args().repeat)]
    print(json.dumps({
        "command": " ".join(["python", *COMMAND]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ray", "captum", "mlflow")},
        "date": time.strftime("%F"),
        "median": {key: statistics.median(run[key] for run in runs) for key in runs[0]},
        "runs": runs,
    }, indent=2))  # fmt: skip


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
