"""The page: its head, what it comes to, and the sections in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wprox._version import __version__
from wprox.app.html import sections
from wprox.app.html.facts import Facts
from wprox.app.html.markup import Markup, escaped, tag

STYLE = """
:root{--real:#718096;--generated:#dd6b20;--ink:#1a202c;--faint:#4a5568;--rule:#e2e8f0}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:16px;color:var(--ink);background:#fff;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.4em 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2em 0 .4em;padding-top:.5em;border-top:1px solid var(--rule)}
p,ul{max-width:75ch;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.2em 1em;font-size:.9rem}
nav a{color:#2b6cb0}
.scroll{overflow-x:auto;max-width:100%;margin-top:12px}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25em .75em .25em 0;border-bottom:1px solid var(--rule);vertical-align:top}
.text{text-align:left;overflow-wrap:break-word;min-width:7em}
.text+.text{min-width:11em}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.best td{font-weight:700}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,285px),1fr));gap:16px}
.panels>figure,.pair>figure{max-width:430px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,600px),1fr));gap:16px}
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,285px),1fr));gap:8px}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;font-weight:600;overflow-wrap:anywhere}
small{color:var(--faint)}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,"DejaVu Sans",sans-serif;fill:var(--faint)}
.axis{fill:none;stroke:#a0aec0}
.line{fill:none;stroke-width:1.6}
.dots{fill:none;stroke-width:3;stroke-linecap:round;stroke-opacity:.55}
.real.fill{fill:#cbd5e0}
.real.line,.real.dots{stroke:var(--real)}
.generated.line,.generated.dots{stroke:var(--generated)}
.chance.line{stroke:#a0aec0;stroke-dasharray:4 3}
.plus{fill:#2b6cb0}.minus{fill:#c53030}.none{fill:#e2e8f0}
rect{stroke:#edf2f7;stroke-width:.5}
.mark.real{color:var(--real)}.mark.generated{color:var(--generated)}
.bar{display:inline-block;height:.8em;min-width:1px;background:#a0aec0}
td:has(.bar){width:100%;min-width:120px;text-align:left}
@media(max-width:600px){table{font-size:.8rem}th,td{padding-right:.5em}.text{min-width:5.5em}.text+.text{min-width:9em}}
footer{margin:3em 0 1em;color:var(--faint);font-size:.85rem}
"""
ALONE = (  # what a browser is told: no network, no scripts
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
)
TESTS = ("copies", "classifier", "usefulness", "latent")
SECTIONS = ("read", "likelihood", "columns", "pairs", "correlations", *TESTS, "times")


def report_page(
    facts: Facts,
    data: Mapping[str, Any],
    taken: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
    spent: Sequence[tuple[str, float]],
    selection: Mapping[str, Any] | None = None,
) -> str:
    """The whole page, which asks the network for nothing.

    Arguments:
        facts: about the generated rows.
        data: what metrics.json says of the table.
        taken: how each column was taken, in words, by its name.
        results: likelihoods of held-out rows as metrics.json holds them, the flow's first.
        spent: what took how many seconds.
        selection: what metrics.json says of what the flow was chosen by.
    """
    name = PurePath(data["file"]).name
    body = (
        tag("h1", f"JKO flow of {name}"),
        tag("nav", *(tag("a", section, href=f"#{section}") for section in SECTIONS)),
        _in_short(facts, results),
        sections.what_was_read(data, facts.real, taken),
        sections.likelihoods(results, data["held_out_rows"], selection),
        sections.marginals(facts),
        sections.pairs(facts),
        sections.correlations(facts),
        sections.copies(facts),
        sections.classifier(facts),
        sections.usefulness(facts),
        sections.latent_points(facts),
        sections.times(spent),
        tag("footer", f"Written by wprox {__version__}."),
    )
    head = (
        f'<meta charset="utf-8">{ALONE}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>JKO flow of {escaped(name)}</title><style>{STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _in_short(facts: Facts, results: Sequence[Mapping[str, Any]]) -> Markup:
    """What the page comes to, in a few sentences."""
    said = [
        sections.verdict_on_likelihood(results) if len(results) > 1 else "",
        sections.verdict_on_classifier(facts),
        sections.verdict_on_copies(facts),
    ]
    return tag("ul", *(tag("li", sentence) for sentence in said if sentence))
