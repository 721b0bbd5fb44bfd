"""What the command line says: metrics.json beside a model, tables of likelihoods, counts and lists in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wprox.app.tables import default_columns, replacing

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from wprox.models.flow.jko_flow import JKOFlow

METRICS = "metrics.json"


def say(text: str, quiet: bool) -> None:
    """A line on stderr."""
    if not quiet:
        typer.echo(text, err=True)


def show(table: RichTable) -> None:
    """A table on stdout."""
    from rich.console import Console

    Console().print(table)


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    """metrics.json, in one move."""
    with replacing(out / METRICS) as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json says, nothing where there is none.

    Raises:
        ValueError: for a file that was not written by `wprox fit`.
    """
    file = folder / METRICS
    if not file.is_file():
        return {}
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged, it is not JSON: {error}; delete it, or fit the model again") from None
    data = metrics.get("data", {}) if isinstance(metrics, dict) else None
    fitted = {"file", "rows", "training_rows", "held_out_rows", "columns", "constant_columns"}
    results = metrics.get("held_out", []) if isinstance(metrics, dict) else None
    if (
        not isinstance(data, dict)
        or not isinstance(results, list)
        or (data and not fitted <= set(data))
        or (results and not data)
        or not all({"model", "nll", "bits_per_dim", "setting"} <= set(result) for result in results)
        or not all(isinstance(column, str) for column in _listable(data.get("columns", [])))
    ):
        raise ValueError(f"{file} is damaged or was not written by wprox; delete it, or fit the model again")
    return metrics


def _listable(value: object) -> list:
    return value if isinstance(value, list) else [value]


def columns_of(flow: JKOFlow, folder: Path) -> list[str]:
    """The names of the columns that a flow was fitted to; x1, …, xd where they had none."""
    return names_of(flow, folder) or default_columns(flow.n_features_in_)


def names_of(flow: JKOFlow, folder: Path) -> list[str] | None:
    """The names that the columns of the data had; `None` where they had none.

    Before 0.2 metrics.json alone had those of `wprox fit`, which named the columns of .npy files x1, …, xd.
    """
    if hasattr(flow, "feature_names_in_"):
        return list(flow.feature_names_in_)
    data = read_metrics(folder).get("data", {})
    columns = data.get("columns")
    unnamed = not columns or len(columns) != flow.n_features_in_ or str(data["file"]).lower().endswith(".npy")
    return None if unnamed else columns


def model_result(model: str, setting: str, nll: float, dim: int) -> dict[str, Any]:
    """The likelihood of a model on held-out rows, as metrics.json holds it."""
    return {"model": model, "setting": setting, "nll": nll, "bits_per_dim": bits(nll, dim)}


def bits(nll: float, dim: int) -> float:
    """Bits per dimension."""
    return nll / (dim * math.log(2))


def results_table(results: list[dict[str, Any]], rows: int) -> RichTable:
    """Models and their likelihoods, the best in bold."""
    from rich.table import Table as RichTable

    table = RichTable("model", title=f"Negative log-likelihood of {rows:,} held-out rows (lower is better)")
    table.add_column("nats a row", justify="right")
    table.add_column("bits/dim", justify="right")
    table.add_column("setting", style="dim")
    best = min(result["nll"] for result in results)
    for result in results:
        table.add_row(
            result["model"],
            f"{result['nll']:.3f}",
            f"{result['bits_per_dim']:.3f}",
            result["setting"],
            style="bold" if result["nll"] == best else None,
        )
    return table


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, what: str) -> str:
    """A number of things: 1 block, 2 blocks."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
