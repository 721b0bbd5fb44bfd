"""The sections of a report, each from what it speaks of to HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wprox.app.html import pictures
from wprox.app.html.charts import GENERATED, REAL, date, fixed, heat_map, number, percent
from wprox.app.html.facts import Facts
from wprox.app.html.markup import Markup, escaped, grid, panel, paragraph, section, table, tag
from wprox.metrics.columns import Column

PANELS = 24  # marginals that are drawn, at most
PAIRS = 3  # that hang together most, and as many that differ most
LISTED = 12  # rows of a table of what is furthest off


def what_was_read(data: Mapping[str, Any], columns: Sequence[Column], taken: Mapping[str, str]) -> Markup:
    """The table that was read, and how each column was taken."""
    fitted = data["training_rows"] + data["validation_rows"]
    rows = [(column.name, taken.get(column.name, "number"), *_described(column)) for column in columns]
    return section(
        "What was read",
        "read",
        paragraph(
            f"{data['file']}: {data['rows']:,} rows of {len(columns)} columns; {fitted:,} to fit to and "
            f"{data['held_out_rows']:,} held out to report on."
        ),
        table(["column", "taken as", "lowest", "middle", "highest", "different", "missing"], rows, text=(0, 1)),
    )


def _described(column: Column) -> tuple[str, ...]:
    """The ends and the middle of a column, or its most frequent text, and how many entries differ or are missing."""
    known = column.known
    counts = (f"{len(np.unique(known)):,}", f"{len(column.values) - len(known):,}")
    if not len(known):
        return ("", "", "", *counts)
    if column.kind == "text":
        return ("", f"mostly {column.levels[0]}", "", *counts)
    shown = date if column.kind == "date" else number
    return (shown(known.min()), shown(float(np.median(known))), shown(known.max()), *counts)


def likelihoods(results: Sequence[Mapping[str, Any]], rows: int, selection: Mapping[str, Any] | None) -> Markup:
    """The likelihood of the flow beside those of the baselines, and what the flow was chosen by."""
    best = min(range(len(results)), key=lambda k: results[k]["nll"], default=None)
    lines = [(r["model"], fixed(r["nll"]), fixed(r["bits_per_dim"]), r["setting"]) for r in results]
    said = "There is nothing to hold it against: the baselines were left out."
    if len(results) > 1:
        said = verdict_on_likelihood(results)
    return section(
        "Likelihood",
        "likelihood",
        paragraph(f"The mean negative log-likelihood of {rows:,} held-out rows; lower is better. ", said),
        table(["model", "nats a row", "bits/dim", "setting"], lines, text=(0, 3), best=best),
        *([] if selection is None else [paragraph(_chosen(selection))]),
    )


def _chosen(selection: Mapping[str, Any]) -> str:
    """What the flow consists of, and by what."""
    tried = ", ".join(f"{name} {fixed(nll)}" for name, nll in selection["nll"].items())
    parts = "; ".join(f"{weight:.2f} {name} ({fixed(nll)})" for name, weight, nll in selection["start"])
    return (
        f"The flow consists of {selection['chosen']}, chosen by {selection['rows']:,} rows left out (nats a row: "
        f"{tried}). Its start may be made of {parts}."
    )


def verdict_on_likelihood(results: Sequence[Mapping[str, Any]]) -> str:
    """How far the flow, the first of the results, is ahead of the best of the others, or behind."""
    best = min(results[1:], key=lambda result: result["nll"])
    gain = best["nll"] - results[0]["nll"]
    if gain >= 0:
        return f"The flow is {gain:.3f} nats a row ahead of the best baseline, the {best['model']}."
    return (
        f"The {best['model']} is {-gain:.3f} nats a row better than the flow. Where likelihood is what counts, use it; "
        "more rows, or longer training, may turn this."
    )


def marginals(facts: Facts) -> Markup:
    """Histograms of the columns, and those that are furthest apart."""
    order = sorted(range(len(facts.real)), key=lambda k: -_excess(facts, k))
    drawn = [k for k in range(len(facts.real)) if k in order[:PANELS]]
    panels = [panel(facts.real[k].name, pictures.marginal(facts.real[k], facts.generated[k])) for k in drawn]
    lines = [
        (
            facts.real[k].name,
            fixed(facts.marginals[k].value),
            fixed(facts.marginals[k].chance),
            *(percent(part) for part in facts.marginals[k].gaps),
        )
        for k in order[:LISTED]
    ]
    more = f" The {PANELS} that differ most are drawn." if len(facts.real) > PANELS else ""
    return section(
        "Columns, real and generated",
        "columns",
        _legend(),
        paragraph(
            "Equal laws give equal histograms. The distance is the largest difference of the distribution functions, "
            "for text half the sum of the differences of the parts; equal laws stay below the chance level in 95 of "
            f"100 cases.{more}"
        ),
        grid(panels),
        table(["furthest apart", "distance", "chance level", "missing, real", "missing, generated"], lines),
    )


def _excess(facts: Facts, k: int) -> float:
    found = facts.marginals[k]
    return found.value - found.chance if found.value > 0 else -math.inf


def _legend() -> Markup:
    marks = (tag("span", "■ ", kind=f"mark {kind}") + escaped(f"{kind} ") for kind in (REAL, GENERATED))
    return tag("p", *map(Markup, marks), kind="legend")


def pairs(facts: Facts) -> Markup:
    """Clouds of the pairs of columns that hang together most, and that differ most."""
    shown = []
    for j, k in _chosen_pairs(facts):
        real, generated = ([table[j], table[k]] for table in (facts.real, facts.generated))
        axes = (real[0], real[1])
        strength = [fixed(matrix[j, k]) for matrix in facts.associations]
        shown.append(
            grid(
                (
                    panel(
                        f"{real[0].name} → {real[1].name}: {kind}",
                        pictures.pair(columns[0], columns[1], axes, kind),
                        f"association {said}",
                    )
                    for kind, columns, said in zip((REAL, GENERATED), (real, generated), strength, strict=True)
                ),
                "pair",
            )
        )
    said = "The pairs of columns that hang together most, and those whose association differs most beyond chance; the "
    said += "first column to the right, the second upwards."
    title = "Pairs of columns"
    return section(title, "pairs", paragraph(said if shown else "No pair of columns varies."), grid(shown, "pairs"))


def _chosen_pairs(facts: Facts) -> list[tuple[int, int]]:
    """Places of pairs, a column of text first."""
    real, generated = (np.nan_to_num(matrix) for matrix in facts.associations)
    places = [(j, k) for j in range(len(real)) for k in range(j + 1, len(real)) if real[j, k]]
    strongest = sorted(places, key=lambda place: -abs(real[place]))[:PAIRS]
    sizes = [len(table[0].values) for table in (facts.real, facts.generated)]
    chance = 3 * math.sqrt(sum(1 / size for size in sizes))
    differing = [place for place in places if abs(generated[place] - real[place]) > chance and place not in strongest]
    differing.sort(key=lambda place: -abs(generated[place] - real[place]))
    return [(k, j) if facts.real[k].kind == "text" else (j, k) for j, k in strongest + differing[:PAIRS]]


def correlations(facts: Facts) -> Markup:
    """The associations of all columns, of real and of generated rows, and their differences."""
    real, generated = facts.associations
    names = [column.name for column in facts.real[: len(real)]]
    difference = generated - real
    if not np.isfinite(difference).any():
        return section("Correlations", "correlations", paragraph("Fewer than two columns vary."))
    j, k = np.unravel_index(int(np.nan_to_num(np.abs(difference)).argmax()), difference.shape)
    pictures_of = (("real", real), ("generated", generated), ("generated − real, × 5", np.clip(5 * difference, -1, 1)))
    more = f" The first {len(names)} columns are shown." if len(facts.real) > len(names) else ""
    return section(
        "Correlations",
        "correlations",
        paragraph(
            "Spearman's rank correlation of numbers, Cramér's V of texts, the correlation ratio of a number and a "
            "text: blue is positive, red negative, white nothing, grey no number. "
            f"The largest difference is {fixed(difference[j, k], '+')}, of {names[j]} and {names[k]} "
            f"({real[j, k]:.2f} real, {generated[j, k]:.2f} generated).{more}"
        ),
        grid(panel(title, heat_map(matrix, names, f"associations: {title}")) for title, matrix in pictures_of),
    )


def copies(facts: Facts) -> Markup:
    """Whether generated rows are copies of training rows."""
    found = facts.nearest
    levels = (0.01, 0.05, 0.25, 0.5, 0.75)
    rows = [
        (kind, *(number(float(np.quantile(values, level))) for level in levels), percent(share))
        for kind, values, share in (
            ("held-out", found.held_out, found.copies[0]),
            ("generated", found.generated, found.copies[1]),
        )
    ]
    return section(
        "Copies of training rows",
        "copies",
        paragraph(
            "The distance from a row to the nearest training row, in standard deviations of the columns. Real rows "
            "that the model has not seen say what is usual; were training rows learnt by heart, generated rows would "
            f"lie nearer. {verdict_on_copies(facts)}"
        ),
        _legend(),
        grid([panel("rows within a distance of a training row", pictures.distances(found))]),
        table(["rows", *(f"{100 * level:.0f} %" for level in levels), "equal to a training row"], rows),
    )


def verdict_on_copies(facts: Facts) -> str:
    found = facts.nearest
    said = (
        f"{percent(found.generated_near)} of the generated rows are as near to a training row as the nearest "
        f"{percent(found.held_out_near)} of the held-out rows (by chance up to {percent(found.chance)})"
    )
    return said + (": they look copied." if found.generated_near > found.chance else ": no sign of copies.")


def classifier(facts: Facts) -> Markup:
    """What a classifier tells of real and generated rows."""
    found = facts.two_sample
    if isinstance(found, str):
        return section("Can a classifier tell them apart?", "classifier", paragraph(f"Not asked: {found}."))
    rows = [
        ("accuracy", f"{found.accuracy:.3f}", f"± {found.accuracy_error:.3f}", "0.5", ""),
        ("AUC", f"{found.auc:.3f}", f"± {found.auc_error:.3f}", "0.5", f"{found.chance:.3f}"),
    ]
    return section(
        "Can a classifier tell them apart?",
        "classifier",
        paragraph(
            f"A random forest was trained to tell generated from held-out rows, and tested on {found.rows:,} others of "
            f"each. {verdict_on_classifier(facts)}"
        ),
        table(["", "found", "standard error", "equal laws", "equal laws, 95 of 100"], rows),
    )


def verdict_on_classifier(facts: Facts) -> str:
    found = facts.two_sample
    if isinstance(found, str):
        return f"No classifier was asked: {found}."
    where = "above" if found.auc > found.chance else "within"
    what = "it tells them apart" if found.auc > found.chance else "it cannot tell them apart"
    return f"A classifier's AUC of {found.auc:.2f} is {where} what equal laws give ({found.chance:.2f}): {what}."


def usefulness(facts: Facts) -> Markup:
    """What a model learns from generated rows, for real ones."""
    title, name = "Train on generated rows, test on real ones", "usefulness"
    found = facts.utility
    if found is None:
        return section(title, name, paragraph("No column was chosen to be predicted: add --target COLUMN."))
    if isinstance(found, str):
        return section(title, name, paragraph(f"{facts.target} was not predicted: {found}."))
    rows = [
        ("real rows", fixed(found.from_real)),
        ("as many generated rows", fixed(found.from_generated)),
        ("nothing: the best constant", fixed(found.from_constant)),
    ]
    difference = found.from_generated - found.from_real
    return section(
        title,
        name,
        paragraph(
            f"How well a random forest predicts {facts.target} in {found.rows[1]:,} held-out rows, by the "
            f"{found.score}, after training on {found.rows[0]:,} rows. Generated rows in place of real ones change it "
            f"by {fixed(difference, '+')} ± {found.error:.3f}."
        ),
        table(["trained on", found.score], rows),
    )


def latent_points(facts: Facts) -> Markup:
    """How Gaussian the latent points of held-out rows are."""
    found = facts.latent
    order = np.argsort(-found.distances)[:LISTED]
    rows = [(f"{k + 1}", f"{found.distances[k]:.3f}") for k in order]
    within = "within" if found.distances.max() <= found.chance else "above"
    return section(
        "Latent points",
        "latent",
        paragraph(
            "Where the model is right, the flow takes held-out rows to independent standard normal numbers. The mean "
            f"of |z|²/d is {found.mean_square:.3f} (1 ± {found.mean_square_error:.3f} for normal ones), the coordinate "
            f"that is furthest from normal is {found.distances.max():.3f} away, {within} the chance level of "
            f"{found.chance:.3f}."
        ),
        grid([panel("quantiles of |z|² (upwards) and of χ² (to the right)", pictures.squares(found))]),
        table(["coordinate", "distance from normal"], rows),
    )


def times(spent: Sequence[tuple[str, float]]) -> Markup:
    """How long what took."""
    total = sum(seconds for _, seconds in spent)
    rows = [
        (what, f"{seconds:.1f} s", tag("span", "", kind="bar", style=f"width:{100 * seconds / max(total, 1e-9):.1f}%"))
        for what, seconds in spent
    ]
    return section("How long what took", "times", table(["", "", ""], [*rows, ("all of this", f"{total:.1f} s", "")]))
