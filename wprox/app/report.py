"""What the command line says: metrics.json beside a model, tables of likelihoods, counts and lists in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wprox._interruptions import interruptions
from wprox._writing import read_whole
from wprox.app.tables import default_columns
from wprox.models.json_files import is_count, is_list, is_number, is_text, read_json

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
    with interruptions.held():
        from rich.console import Console

    Console().print(table)


def metrics_text(metrics: dict[str, Any]) -> str:
    """What metrics.json holds."""
    return json.dumps(metrics, indent=2) + "\n"


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json says, nothing where there is none.

    Raises:
        ValueError: for a file that was not written by `wprox fit`.
    """
    try:
        return read_whole(folder, (METRICS,), lambda place: _checked_metrics(place / METRICS))
    except FileNotFoundError:
        return {}


def _checked_metrics(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(file)
    metrics = read_json(file, "delete it, or fit the model again")
    said = metrics if isinstance(metrics, dict) else {"data": None}
    data, results = said.get("data", {}), said.get("held_out", [])
    if (
        not isinstance(data, dict)
        or (data and not _are(data, FITTED))
        or (results and not data)
        or not is_list(results, lambda result: isinstance(result, dict) and _are(result, RESULT))
    ):
        raise ValueError(f"{file} is damaged or was not written by wprox; delete it, or fit the model again")
    return said


def _are(said: dict[str, Any], kinds: Mapping[str, Callable[[Any], bool]]) -> bool:
    """Whether all that is asked for is there, and of its kind."""
    return all(name in said and kind(said[name]) for name, kind in kinds.items())


def _names(value: Any) -> bool:
    return is_list(value, is_text)


FITTED = {"file": is_text, "columns": _names, "constant_columns": _names}
FITTED |= {name: is_count for name in ("rows", "training_rows", "held_out_rows")}
RESULT = {"model": is_text, "setting": is_text, "nll": is_number, "bits_per_dim": is_number}


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
    with interruptions.held():
        from rich.markup import escape
        from rich.table import Table as RichTable

    table = RichTable("model", title=f"Negative log-likelihood of {rows:,} held-out rows (lower is better)")
    table.add_column("nats a row", justify="right")
    table.add_column("bits/dim", justify="right")
    table.add_column("setting", style="dim")
    best = min((result["nll"] for result in results), default=None)
    for result in results:
        table.add_row(
            escape(result["model"]),
            f"{result['nll']:.3f}",
            f"{result['bits_per_dim']:.3f}",
            escape(result["setting"]),
            style="bold" if result["nll"] == best else None,
        )
    return table


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, what: str) -> str:
    """A number of things: 1 block, 2 blocks."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
