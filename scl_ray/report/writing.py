"""Build the report: from the store's JSON and Parquet to the page, the tables and the figures."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from scl_ray.report import gallery, latex, page, tables, terms
from scl_ray.report.figures import curves as curve_figures
from scl_ray.report.figures import differences, distributions, rankings, relations
from scl_ray.report.figures.drawing import Drawn, Looks, looks, style
from scl_ray.report.page import View
from scl_ray.report.page.measures import for_paper
from scl_ray.results import Results, curves, open_results, plain


@dataclass(frozen=True)
class ReportPaths:
    """Where a report lies, on the filesystem of ``--out``."""

    index: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


def build(out: str | Results, name: str = "") -> ReportPaths:
    """Write ``report/index.html``, ``report/tables/*.{csv,tex}`` and ``report/figures/*.{svg,png}`` of the sweep *name*
    below *out*, or of one that is open.

    The same store gives the same bytes; a file of an earlier report that this one does not have is removed. Raises
    InputError where there is no sweep *name* below *out*.
    """
    results = out if isinstance(out, Results) else open_results(out, name)
    made = tables.make(results)
    with style():
        views = list(_views(results, made))
        doses = list(_doses(made))
    files: dict[str, bytes] = {}
    standing = terms.representative(made.measures)
    for table, rows in (made.named() | {f"facets-{view.slug}": for_paper(view.of(standing)) for view in views}).items():
        files |= {f"tables/{table}.csv": csv(rows), f"tables/{table}.tex": latex.table(rows).encode()}
    figures = [figure for view in views for kind in view.figures.values() for figure in kind]
    for figure in [*figures, *doses]:
        files |= {f"figures/{figure.name}.svg": figure.svg.encode(), f"figures/{figure.name}.png": figure.png}
    # The page comes last: where it is, what it names is there.
    files["index.html"] = page.render(results.name, results, made, views, doses).encode()
    for path, content in files.items():
        results.store.write(f"report/{path}", content)
    _remove_others(results, set(files))
    paths = {path: results.store.path("report", path) for path in files}
    of = {kind: tuple(full for path, full in paths.items() if path.startswith(kind)) for kind in ("tables", "figures")}
    return ReportPaths(paths["index.html"], of["tables"], of["figures"])


def csv(table: pd.DataFrame) -> bytes:
    """The table as it is stored."""
    # Six digits: what is summed in parallel may differ in the last ones of float64.
    text: str = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text.encode()


def _views(results: Results, made: tables.Tables) -> Iterator[View]:
    """Every view with its figures; galleries of the first backbone alone: the maps of the others are in the store and
    would make the page heavy."""
    names = results.trials.drop_duplicates("objective_label").set_index("objective_label")["objective"]
    labels = list(results.trials["objective_label"].cat.categories)
    look = looks(labels, [str(names[label]) for label in labels])
    keys = [tuple(map(str, key)) for key, _ in made.measures.groupby(terms.VIEW, sort=False)]
    flipped = curves(results)
    with_maps = [key for key in keys if key[0] == keys[0][0]]
    for backbone, protocol in keys:
        view = View(backbone, protocol, {})
        measures, seeds, compared = view.of(made.measures), view.of(made.seeds), view.of(made.comparisons)
        standing = terms.representative(measures)
        if (backbone, protocol) in with_maps:
            room = gallery.MOST_PICTURES // len(with_maps)
            view.galleries.extend(gallery.make(results, standing, backbone, protocol, room))
        found: dict[str, list[Drawn | None]] = {
            "forest": [_forest(terms.representative(compared), view.slug, made.reference)],
            "overview": [differences.overview(compared, f"overview-{view.slug}", made.reference)],
            "distributions": [
                distributions.violins(_scores(results, view, standing), standing, seeds, look, view.slug)
            ],
            "networks": [*distributions.networks(measures, seeds, look, made.reference, view.slug)],
            "curves": [_flipping(results, flipped, view, look)],
            "accuracy": [relations.accuracy(measures, seeds, look, view.slug)],
            "properties": [relations.properties(view.of(made.properties), view.slug)],
            "agreement": [relations.agreement(view.of(made.agreement), view.slug)],
            "methods": [rankings.ranks(view.of(made.methods), view.slug)],
            "maps": [gallery.mosaic(one, view.slug) for one in view.galleries],
        }
        for kind, figures in found.items():
            view.figures[kind] = [figure for figure in figures if figure is not None]
        yield view


def _forest(compared: pd.DataFrame, slug: str, reference: str) -> Drawn | None:
    told = compared[compared["difference"].notna()]
    return differences.forest(told, f"differences-{slug}", reference) if len(told) else None


def _doses(made: tables.Tables) -> Iterator[Drawn]:
    """A figure for each protocol and parameter that the grid varies."""
    standing = terms.representative(made.measures)[[*terms.VIEW, *terms.MEASURE]].drop_duplicates()
    doses = made.doses.merge(standing)
    for (protocol, parameter), rows in doses.groupby(["protocol", "parameter"], sort=False):
        seeds = made.seeds[made.seeds["protocol"] == protocol]
        name = f"dose-{parameter}-{protocol}"
        yield curve_figures.dose_response(rows, seeds, made.reference, name, str(parameter))


def _scores(results: Results, view: View, standing: pd.DataFrame) -> pd.DataFrame:
    """How the scores of common images spread under each objective, all its networks together, of the measures that
    stand for the facets: objective_label, metric, method, images (scores that are defined), quantiles (a list)."""
    shown = standing.loc[standing["facet"] != terms.ACCURACY, ["metric", "method"]].drop_duplicates()
    results.connection.register("shown", shown.astype(str))
    rows = results.query(
        """
        SELECT objective_label, plain_metric AS metric, plain_method AS method, count(*) AS images,
               quantile_cont(value::DOUBLE, $3::DOUBLE[]) AS quantiles
        FROM scores JOIN trials USING (trial) JOIN cells USING (method, metric)
        JOIN common USING (backbone, protocol, image)
        JOIN shown ON shown.metric = plain_metric::VARCHAR AND shown.method = plain_method::VARCHAR
        WHERE backbone = $1 AND protocol = $2 AND value IS NOT NULL
        GROUP BY ALL ORDER BY objective_label, plain_metric, plain_method""",
        [view.backbone, view.protocol, list(distributions.QUANTILES)],
    )
    results.connection.unregister("shown")
    return rows.astype({"objective_label": str, "metric": str, "method": str})


def _flipping(results: Results, flipped: pd.DataFrame, view: View, look: Looks) -> Drawn | None:
    """The curves of one view, of the sweep's that are *flipped*, over the sample images that all its trials classify
    correctly."""
    trials = results.trials.loc[results.trials["backbone"] == view.backbone, ["trial", "objective_label"]]
    common = results.query("SELECT image FROM common WHERE backbone = $1 AND protocol = $2",
                           [view.backbone, view.protocol])  # fmt: skip
    cells = results.cells.loc[results.cells["protocol"] == view.protocol, ["method", "metric"]]
    rows = flipped.merge(trials.astype(str)).merge(cells.astype(str)).merge(common)
    if rows.empty:
        return None
    for column in ("method", "metric"):
        rows[column] = rows[column].map({spec: plain(spec) for spec in rows[column].unique()})
    return curve_figures.at_steps(_ordered(rows, results), look, view.slug)


def _ordered(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Curves in the order of the configuration."""
    known = {"metric": results.cells["plain_metric"], "method": results.cells["plain_method"],
             "objective_label": results.trials["objective_label"]}  # fmt: skip
    places = {column: {value: i for i, value in enumerate(of.cat.categories)} for column, of in known.items()}
    for column, place in places.items():
        rows[f"{column}_place"] = rows[column].map(place)
    return rows.sort_values([*(f"{column}_place" for column in places), "trial", "image", "step"], ignore_index=True)


def _remove_others(results: Results, files: set[str]) -> None:
    """Remove tables and figures that an earlier report left."""
    for folder, suffixes in (("tables", (".csv", ".tex")), ("figures", (".svg", ".png"))):
        for path in results.store.fs.find(results.store.path("report", folder), maxdepth=1):
            name = str(path).rsplit("/", 1)[-1]
            if name.endswith(suffixes) and f"{folder}/{name}" not in files:
                results.store.fs.rm_file(path)
