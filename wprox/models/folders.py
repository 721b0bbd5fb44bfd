"""Folders that hold a model's state: model.safetensors and config.json, written atomically, read with checks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from wprox._checks import check_flag, check_path
from wprox._version import __version__
from wprox.models.state import State, StateError

FORMAT = 1
CONFIG, TENSORS = "config.json", "model.safetensors"


def save_folder(folder: str | Path, model: str, state: State, overwrite: bool = False) -> None:
    """Write a model folder: a reader sees the old model or the new one.

    A new folder appears in one move. With `overwrite`, the two files of an existing folder are replaced one after the
    other (its other files stay); config.json holds the checksum of the tensors, so that mixed saves are refused.

    Arguments:
        folder: the folder.
        model: what kind of model it is, which `load_folder` asks for.
        state: the model.
        overwrite: whether an existing folder may be written into.

    Raises:
        ValueError: where the folder exists and `overwrite` is not set.
    """
    folder = check_path(folder, "folder")
    check_flag(overwrite, "overwrite")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already; choose another folder or set overwrite=True (--overwrite)")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder; choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    packed = safetensors.torch.save(tensors)
    head = {"format": FORMAT, "wprox": __version__, "sha256": hashlib.sha256(packed).hexdigest(), "model": model}
    content = head | state.config
    text = json.dumps(content, indent=2, default=_plain) + "\n"
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (staging / TENSORS).write_bytes(packed)
        (staging / CONFIG).write_text(text, encoding="utf-8")
        staging.chmod(0o755)
        if folder.exists() and any(folder.iterdir()):
            for name in (TENSORS, CONFIG):
                os.replace(staging / name, folder / name)
        else:
            os.replace(staging, folder)  # POSIX lets a folder take the place of an empty one
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _plain(value: Any) -> Any:
    """numpy's and torch's numbers and arrays, as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a parameter of type {type(value).__name__} cannot be stored in {CONFIG}: {value!r}")


@contextmanager
def loaded_folder(folder: str | Path, model: str) -> Iterator[State]:
    """The state in a model folder, for a model to take inside the block.

    Raises:
        ValueError: where the folder or a file is missing, truncated, foreign, or of a newer format, or holds another
            kind of model; and, naming the folder, where the state does not fit the model that takes it.
    """
    tensors, config = _read(folder)
    if config.get("model") != model:
        raise ValueError(f"{folder} holds a {config.get('model')!r}, not a {model}")
    try:
        yield State(config, tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError, StateError) as error:
        raise ValueError(f"{folder} is damaged: its files do not fit together ({error}); save it again") from None


def _read(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = check_path(folder, "folder")
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
        packed = (folder / TENSORS).read_bytes()
        tensors = safetensors.torch.load(packed)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{folder / TENSORS} is damaged or truncated: {error}; save the model again") from None
    if hashlib.sha256(packed).hexdigest() != config.get("sha256"):
        raise ValueError(f"the two files of {folder} come from different saves; save the model again")
    return tensors, config
