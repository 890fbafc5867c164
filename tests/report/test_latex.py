"""Tables for a paper compile and say what the data frame says."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from scl_ray.report import latex

AWKWARD = r"50 % of a_b & {c} #1 $x$ ~^\ <|> τ=0.07 β ± − → ▲ ▼ … ✗ –"
TABLE = pd.DataFrame({"objective_label": ["supcon τ=0.07", AWKWARD], "mean": [0.262, np.nan], "p": [1.25e-7, -0.5],
                      "seeds": [3, 2],
                      "agrees": pd.array([True, None], "boolean"), "needed": [np.inf, 4.0]})  # fmt: skip


def test_rules_columns_and_numbers():
    text = latex.table(TABLE)
    assert text.startswith("% needs booktabs")
    assert r"\begin{tabular}{lrrrrr}" in text
    assert re.findall(r"\w+rule", text) == ["toprule", "midrule", "bottomrule"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert rows[0].startswith(r"objective\_label & mean &")
    assert r"supcon \ensuremath{\tau}=0.07 & 0.262 & \ensuremath{1.25\cdot 10^{-7}} & 3 & True & " in rows[1]
    assert rows[1].endswith(r"\ensuremath{\infty} \\")
    assert " & -- & \\ensuremath{-0.5} & 2 & -- & 4" in rows[2]
    # Nothing special is left unescaped: every & that separates stands between blanks.
    assert len(re.findall(r"(?<!\\)&", rows[2])) == len(TABLE.columns) - 1
    assert not re.search(r"(?<!\\)[%#$_]", rows[2])


def test_infinity_has_its_sign():
    text = latex.table(pd.DataFrame({"low": [-np.inf, np.inf, -0.0, 3e20]}))
    assert re.findall(r"^(.*) \\\\$", text, re.MULTILINE)[1:] == [
        r"\ensuremath{-\infty}",
        r"\ensuremath{\infty}",
        "0",
        r"\ensuremath{3\cdot 10^{20}}",
    ]


def test_a_long_table_goes_on_over_pages():
    text = latex.table(pd.DataFrame({"value": np.arange(latex.LONG + 1)}))
    assert r"\begin{longtable}{r}" in text
    assert text.index(r"\midrule") < text.index(r"\endhead") < text.index("0 \\\\")
    assert "longtable" not in latex.table(pd.DataFrame({"value": np.arange(latex.LONG)}))


def test_it_compiles(tmp_path):
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex on this machine")
    long = pd.DataFrame({"metric": [AWKWARD] * (latex.LONG + 1)})
    document = "\n".join([
        r"\documentclass{article}", r"\usepackage{booktabs,amssymb,longtable}", r"\begin{document}",
        latex.table(TABLE), latex.table(long), r"\end{document}",
    ])  # fmt: skip
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run([engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
