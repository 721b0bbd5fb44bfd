"""The pages on classes of one's own run as they are written, and what the pages link to in Python exists."""

import importlib
import re
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("extend/*.md"))
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"\{(?:py:)?(?:func|class|meth|exc|attr|mod)\}`~?([\w.]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs_in_order_and_ends_with_the_laws(page):
    blocks = CODE.findall(page.read_text(encoding="utf-8"))
    namespace = {"__name__": f"docs.{page.stem}"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    assert f"wprox.testing.check_{page.stem}(" in blocks[-1]


def names():
    found = {
        (name, page.name) for page in DOCS.rglob("*.md") for name in ROLE.findall(page.read_text(encoding="utf-8"))
    }
    return sorted(found)


@pytest.mark.parametrize(("name", "page"), names())
def test_what_pages_link_to_exists(name, page):
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part)
        return
    raise AssertionError(f"{page} links to {name}, which cannot be imported")
