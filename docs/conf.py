"""How Sphinx builds the documentation: `make docs`; it needs no network."""

from __future__ import annotations

import re
from typing import Any

import matplotlib

matplotlib.use("Agg")

import wprox

project = "wprox"
author = "the wprox developers"
release = version = wprox.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.py", "gallery/*.ipynb", "gallery/*.zip"]
html_theme = "furo"
html_title = f"wprox {release}"
html_show_sourcelink = False
default_role = "code"  # docstrings write code in single backticks

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]

autosummary_generate = False  # tables of one line an object, each on the page that documents it
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # scikit-learn adds these to every estimator, with references into its own documentation
    "exclude-members": "set_fit_request, set_score_request, set_transform_request, set_inverse_transform_request",
}
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(?!plot_)\w+\.py$",
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
}
# the pickled gallery configuration holds nothing that changes between builds, but Sphinx cannot know that
suppress_warnings = ["config.cache"]


def show_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show the formulas of docstrings as they are typed.

    An indented formula between blank lines becomes a literal block; in running text |x − y|² is kept from being read
    as a substitution of reStructuredText. Comes before napoleon, while sections are still indented under their titles.
    """
    result: list[str] = []
    in_formula = in_example = False
    last_text = ""
    for line in lines:
        indented = line.startswith("    ")
        if indented and result and not result[-1].strip() and last_text and not last_text.startswith(" "):
            result += ["::", ""]
            in_formula = True
        if line.strip():
            in_formula = in_formula and indented
            last_text = line
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_formula and not in_example:
            parts = re.split(r"(`+[^`]*`+)", line)  # leave code alone
            line = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)
        result.append(line)
    lines[:] = result


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", show_formulas, priority=400)
