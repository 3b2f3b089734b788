"""``platon-prune export``: a model in another form of file."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from platon_prune.commands._output import require_place
from platon_prune.writing import replacing, replacing_in

# The index is what from_pretrained reads first.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HELP = "Write a model as an ordinary or a sparse file, or for ONNX Runtime or OpenVINO."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="folder of a transformers model, or a folder or file that platon_prune.save wrote; "
        "to dense or sparse also a safetensors file",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=tuple(_WRITERS),
        help="dense: for from_pretrained, or a safetensors file; uniform: a shrunk model with "
        "zeros put back until from_pretrained can read it; sparse: as platon_prune.save writes; "
        "onnx: model.onnx; openvino: model.xml and model.bin",
    )
    parser.add_argument(
        "--output",
        "--output_dir",
        "-o",
        type=Path,
        required=True,
        help="folder to write, or file if MODEL is one",
    )
    parser.add_argument("--compression", choices=("zstd",), help="of --to sparse (default: none)")


def run(arguments: argparse.Namespace) -> int:
    """Write the model, and say what was written.

    Raises:
        ValueError: If the model can't be read or written so.
    """
    source, target = arguments.model, arguments.output
    if arguments.compression and arguments.to != "sparse":
        raise ValueError(
            f"--compression must go with --to sparse, got --to {arguments.to}: drop it"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"--output must not be MODEL itself, got {target}: give another path")
    if target.exists() and target.is_dir() != source.is_dir():
        kind = "folder" if source.is_dir() else "file"
        raise ValueError(f"--output must be a {kind} as MODEL is, got {target}: give another path")
    if target.is_dir():
        _refuse_other_files(target)
    require_place("--output", target)
    write = _convert_file if source.is_file() else _WRITERS[arguments.to]
    write(arguments)
    for path in sorted(target.iterdir()) if target.is_dir() else [target]:
        print(f"{path.stat().st_size / 1e6:>12,.3f} MB  {path}")
    return 0


def _refuse_other_files(folder: Path) -> None:
    """A model is written beside nothing: which files belong to it could not be told later."""
    names = sorted(path.name for path in folder.iterdir())
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"--output must be a new or an empty folder, got {folder} with {shown}: give another "
            "path, or empty it"
        )


# --- files --------------------------------------------------------------------------------------


def _convert_file(arguments: argparse.Namespace) -> None:
    """A file holds tensors and no model: it can become dense or sparse."""
    if arguments.to not in ("dense", "sparse"):
        raise ValueError(
            f"MODEL must be a folder with a config.json for --to {arguments.to}, got the file "
            f"{arguments.model}, which holds tensors but not what to do with them"
        )
    from platon_prune.export.tensor_files import write_dense, write_sparse

    if arguments.to == "dense":
        write_dense(arguments.model, arguments.output)
    else:
        write_sparse(arguments.model, arguments.output, arguments.compression)


# --- folders ------------------------------------------------------------------------------------


def _write_dense(arguments: argparse.Namespace) -> None:
    model = _read(arguments)
    with replacing_in(arguments.output, last=_WEIGHTS) as beside:
        model.save_pretrained(beside)
        names = {path.name for path in beside.iterdir()}
    for path in arguments.output.glob("model*.safetensors*"):
        if path.name not in names:  # of an earlier model: from_pretrained might take it
            path.unlink()
    _copy_companions(arguments)


def _write_uniform(arguments: argparse.Namespace) -> None:
    from platon_prune.shrinking.even import with_zeros_back

    model = _read(arguments)
    even = with_zeros_back(model)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, even))
    even.save_pretrained(arguments.output)
    _copy_companions(arguments)
    print(f"{before:,} parameters, and {after - before:,} zeros put back for the config to tell")


def _write_sparse(arguments: argparse.Namespace) -> None:
    from platon_prune.export.files import save

    save(_read(arguments), arguments.output, compression=arguments.compression)
    _copy_companions(arguments)


def _write_onnx(arguments: argparse.Namespace) -> None:
    from platon_prune.deploy.inputs import varied_inputs
    from platon_prune.runtimes.onnx_file import write_onnx

    _require("onnx", "onnxscript")
    model = _read(arguments)
    examples = varied_inputs(model)
    with replacing_in(arguments.output) as beside:
        takes_all = write_onnx(model, examples, beside / "model.onnx")
    if not takes_all:
        print("torch can export this model for one size of inputs only; the file takes:")
        for name, tensor in max(examples, key=lambda e: sum(t.numel() for t in e.values())).items():
            print(f"  {name} of shape {tuple(tensor.shape)}")
    _copy_companions(arguments)


def _write_openvino(arguments: argparse.Namespace) -> None:
    from platon_prune.runtimes.openvino_file import write_openvino

    _require("openvino")
    _write_onnx(arguments)
    onnx = arguments.output / "model.onnx"
    with replacing_in(arguments.output) as beside:
        write_openvino(onnx, beside / "model.xml")
    for path in (onnx, onnx.with_name("model.onnx.data")):
        path.unlink(missing_ok=True)


_WRITERS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "dense": _write_dense,
    "uniform": _write_uniform,
    "sparse": _write_sparse,
    "onnx": _write_onnx,
    "openvino": _write_openvino,
}


def _read(arguments: argparse.Namespace) -> Any:
    from platon_prune.deploy.models import read_model

    return read_model(arguments.model)


def _require(*packages: str) -> None:
    """Import what will be needed, before anything is done."""
    for package in packages:
        importlib.import_module(package)


def _copy_companions(arguments: argparse.Namespace) -> None:
    """The tokenizer's files and the like: without them the new folder could not be used."""
    from platon_prune.deploy.models import COMPANIONS

    for pattern in (
        *COMPANIONS,
        *(() if arguments.to in ("dense", "uniform", "sparse") else ("config.json",)),
    ):
        for path in arguments.model.glob(pattern):
            if path.is_file():
                with path.open("rb") as source, replacing(arguments.output / path.name) as file:
                    shutil.copyfileobj(source, file)
