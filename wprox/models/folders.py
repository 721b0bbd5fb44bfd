"""Folders that hold a model's state: model.safetensors and config.json, written atomically, read with checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from wprox._checks import check_flag, check_path
from wprox._version import __version__
from wprox._writing import claimed, read_whole
from wprox.maps.registry import UnknownMapError
from wprox.models.json_files import read_json, shown
from wprox.models.state import State

FORMAT = 2  # 1 had a checksum of the tensors alone; it is read
CONFIG, TENSORS = "config.json", "model.safetensors"
LONGEST = 300  # letters of another library's message that one of ours cites


def save_folder(folder: str | Path, model: str, state: State, overwrite: bool = False) -> None:
    """Write a model folder: a reader sees the old model or the new one, whatever ends this process on the way.

    How that is done is in `wprox._writing`. With `overwrite`, other files of an existing folder stay.

    Arguments:
        folder: the folder.
        model: what kind of model it is, which `load_folder` asks for.
        state: the model.
        overwrite: whether an existing folder may be written into.

    Raises:
        ValueError: where the folder exists and `overwrite` is not set, where another process writes it, and where it
            cannot be written.
    """
    folder = check_path(folder, "folder")
    check_flag(overwrite, "overwrite")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already; choose another folder or set overwrite=True (--overwrite)")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder; choose another name")
    config, packed = _packed(model, state)

    def write(new: Path) -> None:
        new.mkdir()
        (new / TENSORS).write_bytes(packed)
        (new / CONFIG).write_text(config, encoding="utf-8")

    with claimed(folder) as claim:
        claim.write_folder(write, overwrite=overwrite)


def _packed(model: str, state: State) -> tuple[str, bytes]:
    """The contents of config.json and of model.safetensors."""
    packed = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    )
    head = {"format": FORMAT, "wprox": __version__, "sha256": "", "model": model}
    config = json.loads(json.dumps(head | state.config, default=_plain))
    config["sha256"] = checksum(config, packed)
    return json.dumps(config, indent=2) + "\n", packed


def checksum(config: dict[str, Any], packed: bytes) -> str:
    """Of both files: of the tensors, and of what the configuration says beside this checksum.

    Format 1 had one of the tensors alone.
    """
    digest = hashlib.sha256(packed)
    if config["format"] > 1:
        content = {name: value for name, value in config.items() if name != "sha256"}
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


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
    config, tensors = _read(check_path(folder, "folder"))
    if config.get("model") != model:
        raise ValueError(f"{folder} holds a {shown(config.get('model'))}, not a {model}")
    try:
        yield State(config, tensors)
    except UnknownMapError as error:
        raise ValueError(f"{folder}: {error}") from None
    except Exception as error:  # a file that was not written by `save_folder` can provoke anything
        said = str(error).partition("\n")[0][:LONGEST] or type(error).__name__
        raise ValueError(f"{folder} is damaged: its files do not fit together ({said}); save it again") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a model folder: there is no such folder; wprox fit makes one")
    return read_whole(folder, (CONFIG, TENSORS), lambda place: _read_files(folder, place))


def _read_files(folder: Path, place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, TENSORS):
        if not (place / name).is_file():
            raise ValueError(f"{folder} is not a model folder: it has no {name}")
    config = _read_config(place / CONFIG)
    try:
        packed = (place / TENSORS).read_bytes()
        tensors = safetensors.torch.load(packed)
    except Exception as error:  # of safetensors, or of torch where it knows no such type
        said = f"{type(error).__name__}: {error}"[:LONGEST]
        raise ValueError(f"{place / TENSORS} is damaged or truncated: {said}; save the model again") from None
    if checksum(config, packed) != config.get("sha256"):
        raise ValueError(
            f"{place / CONFIG} or {TENSORS} is damaged, or the two files come from different saves: their checksum is "
            "another; save the model again"
        )
    return config, tensors


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file, "save the model again")
    if not isinstance(config, dict) or "format" not in config or "wprox" not in config:
        raise ValueError(f"{file} was not written by wprox: it names no format")
    number = config["format"]
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise ValueError(
            f"{file} has format {shown(number)}, written by wprox {shown(config['wprox'])}; this version reads formats "
            f"1 to {FORMAT}: update wprox"
        )
    return config
