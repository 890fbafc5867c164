"""Tables for a paper: LaTeX with booktabs, for any engine."""

import re
from unicodedata import lookup

import pandas as pd

LONG = 40  # rows that still fit on one page
_ESCAPED = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
            "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
            "<": r"\ensuremath{<}", ">": r"\ensuremath{>}", "|": r"\ensuremath{|}"}  # fmt: skip
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi", "pi",
          "rho", "sigma", "tau", "phi", "chi", "psi", "omega")  # fmt: skip
_SYMBOLS = {lookup(f"GREEK SMALL LETTER {name}"): rf"\{name}" for name in _GREEK} | {
            "λ": r"\lambda", "±": r"\pm", "−": "-", "×": r"\times", "→": r"\rightarrow", "↑": r"\uparrow",
            "↓": r"\downarrow", "▲": r"\blacktriangle", "▼": r"\blacktriangledown", 
            "·": r"\cdot", "≥": r"\geq", "≤": r"\leq"}  # fmt: skip
_WRITTEN = str.maketrans(_ESCAPED | {symbol: rf"\ensuremath{{{name}}}" for symbol, name in _SYMBOLS.items()}
                         | {"–": "--", "…": r"\ldots{}", "✗": "x", "\n": " "})  # fmt: skip


def table(rows: pd.DataFrame) -> str:
    """The table as a ``tabular`` (a ``longtable`` of more than 40 rows): a rule above, one below the head, one at the
    end; numbers to the right with six digits at most, a dash where there is nothing."""
    names = [str(name) for name in rows.columns]
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(kind) else "l" for kind in rows.dtypes)
    columns = [[_cell(value) for value in rows[name]] for name in rows.columns]
    environment = "longtable" if len(rows) > LONG else "tabular"
    packages = "booktabs, amssymb" + (", longtable" if environment == "longtable" else "")
    head = " & ".join(escape(name) for name in names) + r" \\"
    body = [" & ".join(row) + r" \\" for row in zip(*columns, strict=True)]
    repeated = [r"\endhead"] if environment == "longtable" else []
    lines = [f"% needs {packages}", rf"\begin{{{environment}}}{{{kinds}}}", r"\toprule", head, r"\midrule", *repeated,
             *body, r"\bottomrule", rf"\end{{{environment}}}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX shows it: special characters escaped, the report's symbols as commands."""
    return text.translate(_WRITTEN)


def _cell(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "--"
    if isinstance(value, float):
        # 1e-05 is a number to no reader of a paper.
        text = re.sub(r"e([+-])0*(\d+)$", r"\\cdot 10^{\g<1>\g<2>}", f"{value + 0.0:.6g}").replace("^{+", "^{")
        text = text.replace("inf", r"\infty")
        return text if re.fullmatch(r"[\d.]+", text) else rf"\ensuremath{{{text}}}"
    return escape(str(value))
