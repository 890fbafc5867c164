"""What all figures share: style, colours, panels, and how a figure is stored."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

from scl_ray.report import terms

# Four of Okabe & Ito's colours (jfly.uni-koeln.de/color) and a brown: people of every colour vision tell them apart,
# and each is seen on a light and on a dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5200")
MARKERS = "osD^vPX*"
BETTER, WORSE, NEUTRAL = PALETTE[0], PALETTE[1], "#8b929b"
DIVERGING = LinearSegmentedColormap.from_list("worse to better", [WORSE, "#f4f4f2", BETTER])
HOLLOW = "#fefefe"  # the inside of a mark that is not filled
# The greys of style.mplstyle, and what is as the page.
THEME = {"#1c2127": "var(--ink)", "#8b929b": "var(--axis)", "#dde1e6": "var(--grid)", HOLLOW: "var(--page)"}
ACROSS = 4  # panels side by side
_LUMINANCES = (0.09, 0.29)  # of the darkest and the palest shade of a hue: both are seen on white and on black


@dataclass(frozen=True)
class Drawn:
    """A figure as it is stored: *name* without suffix, what it shows in words, an SVG and a PNG."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes

    @property
    def themed(self) -> str:
        """The SVG for the page: in the page's colours, and with ids that no other figure has."""
        body = self.svg[self.svg.index("<svg") :]
        # Only what is referred to keeps its id: matplotlib names everything, and equal pictures alike.
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
        body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", body)
        body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{self.name}-", body)
        body = re.sub("|".join(THEME), lambda match: THEME[match[0]], body)
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


Looks = dict[str, tuple[str, str]]  # objective label -> colour, marker


def looks(objectives: Sequence[str], names: Sequence[str]) -> Looks:
    """Colour and marker of every objective: a hue for each objective's name, a shade for each parameter value."""
    hues = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}
    found: Looks = {}
    for number, (label, name) in enumerate(zip(objectives, names, strict=True)):
        siblings = [other for other, of in zip(objectives, names, strict=True) if of == name]
        colour = hues[name].lower()
        if len(siblings) > 1:
            dark, pale = _LUMINANCES
            colour = _shade(colour, dark * (pale / dark) ** (siblings.index(label) / (len(siblings) - 1)))
        found[label] = (colour, MARKERS[number % len(MARKERS)])
    return found


def _shade(colour: str, luminance: float) -> str:
    """The colour, darkened or mixed with white to a relative luminance (WCAG 2) in [0, 1]."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    own = float(linear @ [0.2126, 0.7152, 0.0722])
    linear = linear * luminance / own if luminance < own else 1 - (1 - linear) * (1 - luminance) / (1 - own)
    red, green, blue = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return to_hex((red, green, blue))


def save(figure: Figure, name: str, title: str, alt: str) -> Drawn:
    """The figure as SVG and PNG, the same bytes for the same content."""
    name = re.sub(r"[^\w.-]+", "_", name)
    svg, png = io.StringIO(), io.BytesIO()
    # By the canvases themselves: `savefig` draws everything once more for each file, to find a layout that is found.
    # Only panels of a fixed aspect need a second round to find theirs.
    engine = figure.get_layout_engine()
    if engine is not None and any(axis.get_aspect() != "auto" for axis in figure.axes if not axis.get_label()):
        engine.execute(figure)
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    figure.set_facecolor("white")
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    # A hundredth of a point is seen by nobody, and four more digits double the page.
    short = re.sub(r' [dxy]="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg.getvalue())
    return Drawn(name, title, alt, short, png.getvalue())


@contextmanager
def style() -> Iterator[None]:
    """The report's style, while its ``with`` block lasts: every figure is made inside one."""
    with as_file(files("scl_ray.report") / "style.mplstyle") as path, matplotlib.style.context(path):
        yield


def panels(count: int, width: float, height: float, above: float = 0.0, **shared: bool) -> tuple[Figure, list[Axes]]:
    """A figure of *count* panels, as even rows of at most four; *width* and *height* of a panel and what lies *above*
    them all, in inches. Three panels to a row are wider: they fill the page as four do."""
    rows = -(-count // ACROSS)
    columns = -(-count // rows)
    if columns == ACROSS - 1:
        width *= ACROSS / columns
    figure = Figure(figsize=(width * columns, height * rows + above))
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()  # type: ignore[call-overload]
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def measures_of(table: pd.DataFrame, most: int | None = None) -> list[dict[str, str]]:
    """The measures of *table*: facet, metric, method and direction of each, in order, the first *most*."""
    found = table[[*terms.MEASURE, "direction"]].drop_duplicates()
    return [{key: str(value) for key, value in row.items()} for row in terms.records(found.head(most or len(found)))]


def of_measure(table: pd.DataFrame, measure: dict[str, str]) -> pd.DataFrame:
    """The rows of one measure."""
    return table[(table["metric"] == measure["metric"]) & (table["method"] == measure["method"])]


def named(measure: dict[str, str]) -> str:
    """A panel's title: the facet with the better direction; the metric; the method."""
    head = f"{measure['facet']} {terms.arrow(measure['direction'])}"
    return "\n".join([head, *([terms.spelled(measure["metric"]), measure["method"]] if measure["method"] else [])])


def rows_of(axis: Axes, labels: Sequence[str]) -> None:
    """Turn the panel's vertical axis into rows, one a label, the first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, of everything that is labelled in any."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=4, fontsize=9, markerscale=0.8)


def legend_height(labels: int) -> float:
    """What `legend` takes of a figure's height, in inches."""
    return 0.12 + 0.22 * -(-labels // 4)


def in_words(measures: pd.DataFrame) -> str:
    """The means, for those who cannot see the figure."""
    sentences = []
    for measure in measures_of(measures):
        rows = of_measure(measures, measure)
        digits = terms.decimals(rows["mean"])
        values = ", ".join(f"{row['objective_label']} {terms.number(row['mean'], row['spread'], digits)}"
                           for row in terms.records(rows))  # fmt: skip
        under = f" under {measure['method']}" if measure["method"] else ""
        sentences.append(f"{measure['metric']}{under}: {values}.")
    return " ".join(sentences)
