"""Files of pandas' tables: the packages that they need, and what is said of damaged ones."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

BUFFER = 2**16  # bytes of each column at once; without it columns are read whole


def pandas_for(file: Path) -> Any:
    """pandas, which a file needs."""
    try:
        import_module("pyarrow")  # the engine that pandas needs
        return import_module("pandas")
    except ImportError as error:
        raise ImportError(f'{file}: .parquet files need pandas and pyarrow: pip install "wprox[parquet]"') from error


def parquet_file(file: Path) -> Any:
    """What a .parquet file holds, unread."""
    pandas_for(file)
    return import_module("pyarrow.parquet").ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)


def not_parquet(file: Path, error: Exception) -> ValueError:
    """What to say of whatever damaged metadata make pyarrow and pandas do."""
    said = str(error) or type(error).__name__
    return ValueError(f"{file} is not a readable .parquet file (cut off, or not one at all): {said}")
