"""Model folders: model.safetensors and config.json, written atomically, read with checks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

FORMAT = 1
CONFIG, TENSORS = "config.json", "model.safetensors"


def save_folder(
    folder: str | Path, tensors: dict[str, Tensor], config: dict[str, Any], overwrite: bool = False
) -> None:
    """Write a model folder in one move: a reader sees the old folder or the new one, never a half.

    With `overwrite`, the two files are replaced one by one in an existing folder, whose other files stay.

    Raises:
        ValueError: where the folder exists and `overwrite` is not set.
    """
    from wprox import __version__

    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already; choose another folder or set overwrite=True (--overwrite)")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder; choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "wprox": __version__, **config}
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(packed, staging / TENSORS)
        (staging / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        if folder.exists():
            for name in (TENSORS, CONFIG):
                os.replace(staging / name, folder / name)
        else:
            os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_folder(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a model folder.

    Raises:
        ValueError: where the folder or a file is missing, truncated, foreign, or of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a model folder: there is no such folder; wprox fit makes one")
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a model folder: it has no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged, it is not JSON: {error}; save the model again") from None
    if not isinstance(config, dict) or "format" not in config or "wprox" not in config:
        raise ValueError(f"{folder / CONFIG} was not written by wprox: it names no format")
    if not isinstance(config["format"], int) or config["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {config['format']}, written by wprox {config['wprox']}; this version reads formats "
            f"up to {FORMAT}: update wprox"
        )
    try:
        tensors = safetensors.torch.load_file(folder / TENSORS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{folder / TENSORS} is damaged or truncated: {error}; save the model again") from None
    return tensors, config
