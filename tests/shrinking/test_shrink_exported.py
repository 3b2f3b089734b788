"""A shrunk model is an ordinary one to torch.compile and to the ONNX exporter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_shrink
import torch
from test_shrink import assert_close, masked_resnet
from tiny_shrink import FAMILIES, images, inputs_of, masked
from torch import Tensor, nn

import platon_prune

# Gated T5 is built of the same parts as T5, and an export takes seconds.
EXPORTED = ("BERT", "RoBERTa", "DeBERTa-v3", "ViT", "GPT-2", "T5", "Llama", "ResNet")


def shrunk(name: str) -> tuple[nn.Module, dict[str, Any]]:
    if name == "ResNet":
        model = masked_resnet(True)
        platon_prune.shrink(model, example_inputs=images())
        return model, {"x": images()}
    model = masked(name)
    platon_prune.shrink(model)
    # Caches are no outputs that ONNX knows.
    no_cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return model, inputs_of(model) | no_cache


def logits(output: object) -> Tensor:
    return getattr(output, "logits", output)


@pytest.mark.parametrize("name", [*(name for name in FAMILIES if name != "gated T5"), "ResNet"])
def test_it_is_compiled_as_one_graph(name: str) -> None:
    model, inputs = shrunk(name)
    expected = logits(model(**inputs))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(logits(compiled(**inputs)), expected)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler, which Inductor needs")
def test_inductor_compiles_it() -> None:
    # In a process of its own: other tests in this one load Inductor's settings half-way.
    code = (
        "import torch, platon_prune; from test_shrink import assert_close, masked_mlp; "
        "model, optimizer = masked_mlp('AdamW'); platon_prune.shrink(model, optimizer); "
        "x = torch.randn(3, 4); expected = model(x); "
        "assert_close(torch.compile(model)(x), expected)"
    )
    helpers = os.pathsep.join([str(Path(__file__).parent), str(Path(tiny_shrink.__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": helpers},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="ONNX packages are missing: pip install 'platon-prune[onnx]'",
)
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_computes_what_it_does(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model, inputs = shrunk(name)
    path = tmp_path / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = logits(model(**inputs))
        torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {i.name: inputs[i.name].numpy() for i in session.get_inputs()})
    assert_close(torch.from_numpy(found[0]), expected)
