"""The report's page: one self-contained HTML file that needs no network, in a light and a dark theme."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
import pandas as pd

from scl_ray.report import published_numbers, terms
from scl_ray.report.figures.drawing import Drawn
from scl_ray.report.gallery import CASES, Gallery
from scl_ray.report.page import conclusions, measures, provenance
from scl_ray.report.tables import Tables
from scl_ray.results import Results

_WHOLE = 2  # views whose figures all stand on the page; those of the others lie beside it
# What each facet asks of an attribution map.
QUESTIONS = {
    "faithfulness": "Do the pixels it marks carry the decision? They are removed, the most important first.",
    "continuity": "Does it stay the same when the image changes imperceptibly?",
    "contrastivity": "Does it differ from the map of another class?",
    "complexity": "Is it spread over many pixels, or does it name few?",
    "sparseness": "How unequal are the shares of the pixels?",
    "randomisation": "Does it depend on what the network has learned?",
    "coherence": "Does it lie on the object?",
    "axiomatic": "Does it keep the rules that an attribution should keep?",
}


@dataclass(frozen=True)
class View:
    """What one backbone under one protocol shows: its figures (those that it has) by kind, and its galleries."""

    backbone: str
    protocol: str
    figures: dict[str, list[Drawn]]
    galleries: list[Gallery] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.backbone} · {self.protocol} protocol"

    @property
    def slug(self) -> str:
        return re.sub(r"[^\w-]+", "_", f"{self.backbone}-{self.protocol}")  # a backbone may be ``module:callable``

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of this view."""
        return table[(table["backbone"] == self.backbone) & (table["protocol"] == self.protocol)]


def render(name: str, results: Results, made: Tables, views: Sequence[View], doses: Sequence[Drawn]) -> str:
    """The page as HTML. *doses*: figures that show several views at once."""
    of_view = {(row.backbone, row.protocol): row for row in made.images.itertuples(index=False)}
    standing = terms.representative(made.measures)
    return template("page").render(
        name=name,
        plan=results.plan,
        given=results.plan.get("kind") == "comparison",
        grid=provenance.grid(results),
        reference=made.reference,
        views=[{
            "view": view,
            "whole": number < _WHOLE,
            "images": of_view.get((view.backbone, view.protocol)),
            "headline": measures.table(view.of(standing), made.reference),
            "everything": measures.table(view.of(made.measures), made.reference),
            "few_seeds": measures.too_few_seeds(view.of(made.seeds), made.reference),
            "verdicts": conclusions.verdicts(view.of(made.verdicts)),
            "checks": conclusions.checks(view.of(made.sensitivity)),
            "undefined": view.of(made.undefined).to_dict("records"),
        } for number, view in enumerate(views)],
        doses=doses,
        slopes=conclusions.slopes(made.slopes),
        facets=[facet for facet in dict.fromkeys(standing["facet"]) if facet != terms.ACCURACY],
        spelled={row["facet"]: terms.spelled(row["metric"]) for row in terms.records(standing)},
        cases=CASES,
        questions={facet: QUESTIONS[facet] for facet in results.cells["facet"].cat.categories if facet in QUESTIONS},
        protocols=measures.protocols(made.protocols),
        reproduction=conclusions.reproduction(made.reproduction),
        citation=published_numbers.CITATION,
        failures=made.failures.to_dict("records"),
        not_cells=made.not_cells.to_dict("records"),
        trained=provenance.trained(made.trials),
        trials=provenance.trials(made.trials),
        provenance=provenance.facts(results),
        configuration=provenance.configuration(results),
    )  # fmt: skip


def template(name: str) -> jinja2.Template:
    """One of the pages' templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scl_ray.report", "templates"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(f"{name}.html.j2")
