"""The report of a sweep: tables, figures, statistics and one page, from the store's JSON and Parquet alone."""

from typing import TYPE_CHECKING

from scl_ray.report.summary import summary_table

if TYPE_CHECKING:
    from scl_ray.report.writing import ReportPaths
    from scl_ray.results import Results

__all__ = ["build", "summary_table"]


def build(out: "str | Results", name: str = "") -> "ReportPaths":
    """Write the report of the sweep *name* below *out*, or of one that is open; see `scl_ray.report.writing.build`."""
    # Drawing takes seconds to import; the summary table does not wait for it.
    from scl_ray.report.writing import build

    return build(out, name)
