"""A transformers model as a folder: its config and the sparse file, and the model from them.

The class comes from the transformers package, by the name in the config; code that a folder brings
is never run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.export.effective import NamedTensor, tensors_of
from platon_prune.export.foreign_config import at_most, check_config
from platon_prune.export.size_record import apply_sizes_, read_sizes, record_of_sizes
from platon_prune.export.sparse_file import SparseStateDict, write_tensors
from platon_prune.extras import need
from platon_prune.foreign import require_no_way_out
from platon_prune.groups.experts import pass_over_zeros_
from platon_prune.writing import replacing_in

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
# Not the name that from_pretrained looks for: it could not read it.
WEIGHTS = "platon_prune.safetensors"
_SAVED = "platon_prune_saved"  # in the config: which save it is of
README = "README.md"
SENTENCE_TRANSFORMER = "modules.json"  # what that library writes beside its parts
# Of a model that was shrunk: people will try from_pretrained, whose error speaks of sizes.
_HOW_TO_LOAD = """This folder was written by `platon_prune.save`. Layers of the model have sizes
of their own, which a config can't tell: `from_pretrained` can't read it. This does, and runs no
code from this folder:

```python
import platon_prune  # pip install 'platon-prune[transformers]'

model = platon_prune.load("this folder")
```
"""


def is_rebuildable(model: nn.Module) -> bool:
    """Whether it is a model that transformers itself defines."""
    if not hasattr(model, "save_pretrained") or "transformers" not in sys.modules:
        return False
    # A pruned module's class is one of ours with the same name.
    ours = class_named(type(model).__name__)
    return (
        ours is not None and isinstance(model, ours) and type(model).__module__ == ours.__module__
    )


def save_folder(model: Any, folder: Path, compression: str | None) -> None:
    """Write a model's config and tensors; see :func:`platon_prune.save`."""
    tensors = tensors_of(model, non_persistent=True)
    with replacing_in(folder, last=(WEIGHTS,)) as beside:
        _write(model, tensors, beside, compression)
        # One that is there is the user's model card.
        if (folder / README).exists():
            (beside / README).unlink(missing_ok=True)


def how_to_load_another(folder: Path) -> str:
    """What loads a folder that some other library wrote, by the files in it."""
    if (folder / SENTENCE_TRANSFORMER).is_file():
        return "load it with sentence_transformers.SentenceTransformer(path)"
    return "load an ordinary model with from_pretrained"


def load_folder(folder: Path) -> nn.Module:
    """Build the model of a folder; see :func:`platon_prune.load`."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} must be a folder that platon_prune.save wrote, got one without {name}: "
                f"{how_to_load_another(folder)}, or save the model again"
            )
    require_no_way_out(folder)
    tensors = SparseStateDict(folder / WEIGHTS)
    shapes = tensors.index.shapes()
    longest = max((size for shape in shapes.values() for size in shape), default=0)
    content = check_config(folder / CONFIG, len(shapes), longest)
    if content.get(_SAVED, tensors.saved) != tensors.saved:
        raise ValueError(
            f"{folder} must hold a config and weights of one save, got those of two: a save was "
            "cut off while it replaced an earlier one; save the model again"
        )
    config, cls = _read_config(folder)
    sizes = read_sizes(tensors.sizes, tensors.path)
    model = _without_values(config, cls, folder, len(tensors.index.order))
    apply_sizes_(model, sizes, tensors.path)
    check_shapes(
        model,
        shapes,
        str(folder),
        "its config",
        "correct the config, or save the model again",
    )
    values = {name: tensors.tensor(name) for name in tensors.index.order}
    _fill(model, values)
    if _lacks_values(model):
        # A buffer that is in no state dict and that another version of transformers did not have.
        model = cls(config)
        apply_sizes_(model, sizes, tensors.path)
        _fill(model, values)
    if model.can_generate() and (folder / GENERATION_CONFIG).is_file():
        model.generation_config = _read_generation_config(folder)
    pass_over_zeros_(model)
    return model.eval()  # type: ignore[no-any-return]


def _write(model: Any, tensors: list[NamedTensor], folder: Path, compression: str | None) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    shapes = {entry.name: tuple(entry.tensor.shape) for entry in tensors if entry.persistent}
    rebuilt = _without_values(*_read_config(folder), folder, len(tensors))
    sizes = record_of_sizes(model, shapes, rebuilt)
    with contextlib.suppress(ValueError):  # then the shapes differ, which is an error below
        apply_sizes_(rebuilt, sizes, "model")
    check_shapes(
        rebuilt,
        shapes,
        "model",
        "its config",
        "merge adapters and make the config describe the rest, or save a file with its state dict: "
        'save(torch.nn.ModuleDict({"model": model}), path)',
    )
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    saved = _name_save(folder)
    with open(folder / WEIGHTS, "wb") as file:
        write_tensors(file, tensors, compression, versions={}, sizes=sizes.to_json(), saved=saved)
    if sizes.shapes or sizes.own_heads:
        (folder / README).write_text(_HOW_TO_LOAD, encoding="utf-8")


def _name_save(folder: Path) -> str:
    """Write into the config what the weights, which come last, say too: so they belong together.

    It is a digest of the configs: of two saves with the same configs, either weights fit.
    """
    configs = [folder / name for name in (CONFIG, GENERATION_CONFIG)]
    texts = [path.read_bytes() for path in configs if path.exists()]
    saved = hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
    content = json.loads(texts[0]) | {_SAVED: saved}
    configs[0].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return saved


def first_line(error: BaseException) -> str:
    """What another library's error says first."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:300] for line in lines if line), type(error).__name__)


def class_named(name: Any) -> Any:
    """The model class of that name in the transformers package, or None."""
    transformers = _transformers()
    if not isinstance(name, str) or not name.isidentifier():
        return None
    cls = getattr(transformers, name, None)
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    return cls if is_model and cls.__module__.startswith("transformers.models.") else None


def _read_config(folder: Path) -> tuple[Any, Any]:
    """A folder's config and the class of its model."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        vars(config).pop(_SAVED, None)
    except Exception as error:
        raise ValueError(
            f"{folder / CONFIG} must be the config of a model in transformers "
            f"{transformers.__version__}, got one that it can't read ({first_line(error)}): "
            "upgrade transformers, or save the model again"
        ) from error
    names = config.architectures  # any JSON: transformers does not look at it
    name = names[0] if isinstance(names, list) and names else None
    cls = class_named(name)
    if cls is None or not isinstance(config, cls.config_class or transformers.PreTrainedConfig):
        raise ValueError(
            f"{folder / CONFIG} must name as architecture a model of transformers "
            f"{transformers.__version__} with this config, got {repr(names)[:80]}: code from "
            "elsewhere is not run; upgrade transformers, or correct the name"
        )
    return config, cls


def _read_generation_config(folder: Path) -> Any:
    try:
        check_config(folder / GENERATION_CONFIG, num_tensors=0)
        return _transformers().GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"{folder / GENERATION_CONFIG} must be a generation config, got one that transformers "
            f"can't read ({first_line(error)}): save the model again, or delete the file"
        ) from error


def _transformers() -> Any:
    return need("transformers", who="the folder of a transformers model", extra="transformers")


def _without_values(config: Any, cls: Any, folder: Path, num_tensors: int) -> Any:
    """The model on the meta device: shapes and names, no memory."""
    try:
        with torch.device("meta"), at_most(num_tensors):
            return cls(config)
    except Exception as error:
        raise ValueError(
            f"{folder / CONFIG} must describe a {cls.__name__}, got one that can't be built "
            f"({type(error).__name__}: {first_line(error)}): correct it, or save the model again"
        ) from error


def check_shapes(
    model: Any, shapes: dict[str, tuple[int, ...]], subject: str, source: str, advice: str
) -> None:
    """Raise a ValueError if ``subject`` has other tensors than a model that ``source`` made."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = [
        f"{name} {shapes.get(name, 'missing')} for {expected.get(name, 'none')}"
        for name in [*expected, *shapes]
        if shapes.get(name) != expected.get(name)
    ]
    if differing:
        raise ValueError(
            f"{subject} must have the tensors that {source} describes, got {differing[0]} and "
            f"{len(set(differing)) - 1} more differences: {advice}"
        )


def _fill(model: Any, values: dict[str, Tensor]) -> None:
    """Put tensors into the modules; names with the same tensor get the same parameter."""
    parameters: dict[int, nn.Parameter] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        module = modules.get(path)
        if module is None:
            continue  # of a buffer that this version of transformers does not have
        old = module._parameters.get(key)
        if old is not None:
            needs_gradient = old.requires_grad and value.is_floating_point()
            parameter = parameters.setdefault(id(value), nn.Parameter(value, needs_gradient))
            module._parameters[key] = parameter
        elif key in module._buffers:
            module._buffers[key] = value


def _lacks_values(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    kept = (value for module in model.modules() for value in vars(module).values())
    return any(tensor.is_meta for tensor in tensors) or any(
        isinstance(value, Tensor) and value.is_meta for value in kept
    )
