"""What JSON files hold: reading them, and whether a value is what can be counted on, computed with or printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST = 2**63  # beyond which an integer is a slip of the pen, and too large for tensors


def read_json(file: Path, advice: str) -> Any:
    """What a JSON file says.

    Raises:
        ValueError: naming the file, for what is no JSON, or nested or long beyond use.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors, and that of endless integers
        raise ValueError(f"{file} is damaged, it is not JSON: {error}; {advice}") from None


def shown(value: Any) -> str:
    """What a file says, as a message can show it."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def is_count(value: Any) -> bool:
    """Whether it is a whole number that is not negative."""
    return type(value) is int and 0 <= value < LARGEST


def is_number(value: Any) -> bool:
    """Whether it is a number, which may be NaN or infinite."""
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written out."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def is_list(value: Any, entry: Any) -> bool:
    """Whether it is a list of which every entry passes a test."""
    return isinstance(value, list) and all(map(entry, value))
