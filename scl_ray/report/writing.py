"""Build the report: from the store's JSON and Parquet to the page, the tables and the figures."""

from dataclasses import dataclass

import pandas as pd

from scl_ray.report import figures, gallery, page, tables, terms
from scl_ray.results import Results, curves, open_results, plain, sample_images


@dataclass(frozen=True)
class ReportPaths:
    """Where a report lies, on the filesystem of ``--out``."""

    index: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


def build(out: str, name: str) -> ReportPaths:
    """Write ``report/index.html``, ``report/tables/*.csv`` and ``report/figures/*.{svg,png}`` of the sweep *name*.

    The same store gives the same bytes; a file of an earlier report that this one does not have is removed. Raises
    InputError where there is no sweep *name* below *out*.
    """
    results = open_results(out, name)
    made = tables.make(results)
    views, figures = _draw(results, made)
    files = {f"tables/{table}.csv": _csv(rows) for table, rows in made.named().items()}
    for figure in figures:
        files |= {f"figures/{figure.name}.svg": figure.svg.encode(), f"figures/{figure.name}.png": figure.png}
    # The page comes last: where it is, what it names is there.
    files["index.html"] = page.render(name, results, made, views).encode()
    for path, content in files.items():
        results.store.write(f"report/{path}", content)
    _remove_others(results, set(files))
    paths = {path: results.store.path("report", path) for path in files}
    of = {kind: tuple(full for path, full in paths.items() if path.startswith(kind)) for kind in ("tables", "figures")}
    return ReportPaths(paths["index.html"], of["tables"], of["figures"])


def _draw(results: Results, made: tables.Tables) -> tuple[list[page.View], list[figures.Drawn]]:
    names = results.trials.drop_duplicates("objective_label").set_index("objective_label")["objective"]
    labels = list(results.trials["objective_label"].cat.categories)
    look = figures.looks(labels, [str(names[label]) for label in labels])
    views: list[page.View] = []
    drawn: list[figures.Drawn] = []
    with figures.style():
        for key, measures in made.measures.groupby(terms.VIEW, sort=False):
            backbone, protocol = map(str, key)
            slug = f"{backbone}-{protocol}"
            seeds = made.seeds[(made.seeds["backbone"] == backbone) & (made.seeds["protocol"] == protocol)]
            # Maps of the first backbone alone: those of the others are in the store and would make the page heavy.
            first = not views or backbone == views[0].backbone
            view = page.View(
                backbone, protocol, figures.intervals(measures, seeds, look, made.reference, slug),
                figures.accuracy_beside_quality(measures, seeds, look, slug),
                _flipping(results, backbone, protocol, look, slug),
                gallery.make(results, backbone, protocol) if first else [],
            )  # fmt: skip
            views.append(view)
            mosaics = [gallery.mosaic(one, slug) for one in view.galleries]
            drawn += [*view.intervals, view.accuracy, *view.curves, *mosaics]
    return views, drawn


def _flipping(results: Results, backbone: str, protocol: str, look: figures.Looks, slug: str) -> list[figures.Drawn]:
    """The curve figures of one view, over the sample images that all its trials classify correctly."""
    trials = results.trials.loc[results.trials["backbone"] == backbone, ["trial", "objective_label"]]
    common = results.query("SELECT image FROM common WHERE backbone = $1 AND protocol = $2", [backbone, protocol])
    cells = results.cells.loc[results.cells["protocol"] == protocol, ["method", "metric"]]
    rows = curves(results).merge(trials.astype(str)).merge(cells.astype(str)).merge(common)
    if rows.empty:
        return []
    for column in ("method", "metric"):
        rows[column] = rows[column].map({spec: plain(spec) for spec in rows[column].unique()})
    rows = _ordered(rows, results)
    pixels = {image: picture for image, (_, picture) in sample_images(results).items() if image in set(rows["image"])}
    shown = {image: gallery.rgb(pixels[image]) for image in list(pixels)[: gallery.IMAGES]}
    one = rows[(rows["metric"] == rows["metric"].iloc[0]) & (rows["method"] == rows["method"].iloc[0])]
    drawn = [figures.flipping_curves(rows, look, slug)]
    return [*drawn, figures.curves_of_images(one, shown, look, slug)] if shown else drawn


def _ordered(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Curves in the order of the configuration."""
    known = {"metric": results.cells["plain_metric"], "method": results.cells["plain_method"],
             "objective_label": results.trials["objective_label"]}  # fmt: skip
    places = {column: {value: i for i, value in enumerate(of.cat.categories)} for column, of in known.items()}
    for column, place in places.items():
        rows[f"{column}_place"] = rows[column].map(place)
    return rows.sort_values([*(f"{column}_place" for column in places), "trial", "image", "step"], ignore_index=True)


def _csv(table: pd.DataFrame) -> bytes:
    # Six digits: what is summed in parallel may differ in the last ones of float64.
    text: str = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text.encode()


def _remove_others(results: Results, files: set[str]) -> None:
    """Remove tables and figures that an earlier report left."""
    for folder, suffixes in (("tables", (".csv",)), ("figures", (".svg", ".png"))):
        for path in results.store.fs.find(results.store.path("report", folder), maxdepth=1):
            name = str(path).rsplit("/", 1)[-1]
            if name.endswith(suffixes) and f"{folder}/{name}" not in files:
                results.store.fs.rm_file(path)
