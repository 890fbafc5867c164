"""``python -m scl_ray.datasets``: a data set is where it is to be, or it is said why not."""

from pathlib import Path

import pytest
from conftest import DEMO, ROOT

from scl_ray.datasets.__main__ import main


def test_what_is_there_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(DEMO)]) == 0
    assert capsys.readouterr().out == "digits: 1,293 train, 144 validation, 360 test images, 94238e4a4de5\n"


def test_what_is_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--config", str(ROOT / "sweeps/full_grid.yaml"), "--set", "dataset.download=false"]
    assert main([*grid, "--set", f"dataset.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("refused: dataset cifar10: ")
    assert said.count("\n") == 1
