"""What a sweep comes to, and in what process."""

import subprocess
import sys
from pathlib import Path

import pytest
from report import known_sweep as known

from scl_ray import apart, results
from scl_ray.parts import Versioned
from scl_ray.summing_up import means, sum_up


def test_only_complete_trials_have_means_and_none_where_nothing_is_defined(tmp_path: Path) -> None:
    store = known.write(tmp_path, seeds=(0,))
    undefined, incomplete = (known.trial_id(label, "resnet8", 0) for label in ("cross_entropy", "supcon τ=0.07"))
    wanted = [Versioned(cell, "1") for cell in known.cells(("corrected",))]
    held = results.load(str(tmp_path), "demo")
    rows = [(row.image, row.method, row.metric, None if row.metric == "sparseness" else row.value)
            for row in held[held["trial"] == undefined].itertuples()]  # fmt: skip
    store.remove(f"scores/{undefined}")
    known.write_scores(store, undefined, 0, known.IMAGES - 1, wanted, rows)
    store.fs.rm_file(store.parts("scores", incomplete)[0].path)

    found = means(results.open_results(str(tmp_path), "demo"))
    assert set(found) == {known.trial_id(label, "resnet8", 0) for label in known.OBJECTIVES} - {incomplete}
    assert found[undefined]["sparseness/sparseness/grad_cam"] is None
    truth = known.TRUTH["complexity"][0]
    assert found[undefined]["complexity/complexity/grad_cam"] == pytest.approx(truth, abs=0.5)


def test_a_process_of_its_own_writes_the_report_and_reads_the_rest(tmp_path: Path) -> None:
    known.write(tmp_path)
    summed_up = apart.call(sum_up, str(tmp_path), "demo", True, True)
    assert summed_up.unwritten is None
    assert (tmp_path / "demo/report/index.html").stat().st_size > 10_000
    assert summed_up.means == means(results.open_results(str(tmp_path), "demo"))
    assert summed_up.table is not None
    assert summed_up.table.row_count > 3


def test_it_imports_little() -> None:
    code = "import sys, scl_ray.summing_up; print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
