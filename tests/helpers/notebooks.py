"""Notebooks run without Jupyter: `python tests/helpers/notebooks.py FILE` refreshes one."""

import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs_of(notebook, folder):
    """The outputs that Jupyter would store of each code cell, run top to bottom in a folder."""
    namespace = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        return [
            _run("".join(cell["source"]), number, namespace)
            for number, cell in enumerate(code_cells(notebook), start=1)
        ]


def _run(source, number, namespace):
    body = ast.parse(source, f"cell {number}").body
    # As in Jupyter, the value of an expression that ends a cell is shown.
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        # Without the address that some objects tell, which no two runs share.
        data = {"text/plain": [re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))]}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        outputs.append(
            {
                "data": data,
                "execution_count": number,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return outputs


def refresh(path):
    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        fresh = outputs_of(notebook, folder)
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), fresh, strict=True), 1):
        cell.update(execution_count=number, outputs=outputs)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import torch

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)  # as the tests run it
    refresh(sys.argv[1])
