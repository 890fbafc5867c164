"""What tests share: the digits, one trained network, and one small sweep that ran through the real command."""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before anything imports Ray or MLflow.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(variable, None)

import pytest
import torch

from scl_ray import config, datasets, finishing, training
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import DatasetConfig, Trial
from scl_ray.datasets import Dataset
from scl_ray.evaluation import reference_images

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "sweeps/demo.yaml"

# The small sweep that slow tests share: 2 objectives x 2 seeds, both protocols, every kind of metric the digits allow.
SMALL = [
    "grid.objective=[cross_entropy, {name: supcon, temperature: [0.07]}]",
    "training.epochs=2",
    "training.batch_size=128",
    "evaluation.images=80",
    "evaluation.methods=[grad_cam, eigen_cam, saliency]",
    "evaluation.metrics=[pixel_flipping_auc, ssim_continuity, ssim_contrastivity, complexity]",
    "evaluation.protocol=[corrected, published]",
]

sys.path.insert(0, str(ROOT / "sweeps"))

# A shell's job in the background is told to ignore these, and all that the tests start would inherit it.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Networks this small gain nothing from threads and lose much where processors are shared; and sums are then made in one
# order, whatever else the machine does.
torch.set_num_threads(1)


_CLUSTERS: list[int] = []  # the lock's descriptor, while this process holds it


def _hold_clusters() -> None:
    """Of several processes, only this one starts Ray from now on: ``auto`` finds any Ray of a machine."""
    if not _CLUSTERS:
        lock = Path(tempfile.gettempdir(), f"scl_ray-tests-{os.getuid()}.lock")
        _CLUSTERS.append(os.open(lock, os.O_CREAT | os.O_WRONLY, 0o600))
        fcntl.flock(_CLUSTERS[0], fcntl.LOCK_EX)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """A file that starts Ray has it for itself, and so has a test for which the shared sweep is run."""
    if item.path.parent.name in ("cluster", "faults") or item.path.name == "test_full_grid.py":
        _hold_clusters()
    result = yield
    if _CLUSTERS and (nextitem is None or nextitem.path != item.path):
        os.close(_CLUSTERS.pop())
    return result


class Outcome(NamedTuple):
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    error: str


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits at 32x32."""
    return datasets.load(DatasetConfig(name="digits", image_size=32))


@pytest.fixture(scope="session")
def trained(digits: Dataset) -> Checkpoint:
    """A cross-entropy ResNet-8 after a few epochs on the digits."""
    trial = config.load(DEMO, ["grid.objective=cross_entropy", "training.epochs=4"]).trials()[0]
    assert isinstance(trial, Trial)
    *_, (_, state) = training.fit(digits, trial)
    return finishing.finish(digits, trial, state)[0]


@pytest.fixture(scope="session")
def network(trained: Checkpoint) -> torch.nn.Module:
    return trained.explained("corrected")


@pytest.fixture(scope="session")
def images(digits: Dataset, trained: Checkpoint) -> torch.Tensor:
    """32 real test images, normalised."""
    pixels = torch.tensor(digits.test_images[digits.evaluation_order[:32]]).float() / 255
    return (pixels - torch.tensor(trained.mean).view(-1, 1, 1)) / torch.tensor(trained.std).view(-1, 1, 1)


@pytest.fixture(scope="session")
def targets(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The class that the network predicts of each."""
    with torch.no_grad():
        return network(images).argmax(1)


@pytest.fixture(scope="session")
def reference(digits: Dataset, trained: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """80 training images, eight of each class, normalised, and their classes."""
    chosen = reference_images(digits)
    pixels = torch.tensor(digits.train_images[chosen]).float() / 255
    images = (pixels - torch.tensor(trained.mean).view(-1, 1, 1)) / torch.tensor(trained.std).view(-1, 1, 1)
    return images, torch.tensor(digits.train_labels[chosen])


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs sweeps/full_grid.py in this process with the given arguments."""
    import full_grid

    def command(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = full_grid.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own refusals
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return command


def small(*overrides: str) -> list[str]:
    """The arguments of the small sweep, with *overrides* after its own."""
    return ["--config", str(DEMO), *(f"--set={override}" for override in [*SMALL, *overrides])]


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``--out`` folder of the small sweep, run to its end on an embedded Ray. To change it, take `sweep_copy`."""
    import full_grid

    _hold_clusters()
    out = tmp_path_factory.mktemp("finished") / "runs"
    assert full_grid.main([*small(), "--out", str(out)]) == 0
    return out


@pytest.fixture
def sweep_copy(finished_sweep: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished sweep's ``--out`` folder, to be changed at will."""
    # MLflow's database names the place of its artifacts, so a copied sweep starts a log of its own.
    out = tmp_path / "runs"
    shutil.copytree(finished_sweep, out, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    yield out
    shutil.rmtree(out)
