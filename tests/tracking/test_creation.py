"""MLflow's own file, made by a process that is killed."""

import subprocess
import sys
import time
from pathlib import Path

from scl_ray import tracking


def test_a_file_that_is_there_is_whole(tmp_path: Path) -> None:
    """The process is killed as soon as the file is there, which MLflow fills in many steps."""
    path = tmp_path / "out" / "mlflow.db"
    uri = f"sqlite:///{path}"
    log = f"from scl_ray import tracking; tracking.log_sweep({uri!r}, 'demo', (), {{}}, status='RUNNING')"
    maker = subprocess.Popen([sys.executable, "-c", log])
    deadline = time.monotonic() + 180
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    tracking.log_sweep(uri, "demo", (), {}, status="KILLED")
    ((_, status),) = tracking.connection.held(uri, "demo", "sweep").values()
    assert status == "KILLED"
