"""Configs, models and teachers, loaded with errors that name the flag that was wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from platon_prune.integrations.recipes.parsing import Arguments

_MODEL = "--model_name_or_path must be a model"
# What transformers raises of configs that are damaged, or say what can't be.
_NOT_LOADED = (
    OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RecursionError,
    StrictDataclassError,
)  # fmt: skip
# Of the whole of a value, not of layers (layerdrop) or paths (drop_path_rate).
_DROPOUT = re.compile(r"(^|_)(dropout|pdrop)(_|$)")


def load(what: str, from_pretrained: Callable[..., Any], name: str, **settings: Any) -> Any:
    """Call a ``from_pretrained``, with an error that says which flag was wrong.

    Args:
        what: What the flag names, such as ``--model_name_or_path must be a model``.
        from_pretrained: Of an Auto class.
        name: Folder or name on the Hub.
        **settings: Further arguments.

    Raises:
        ValueError: If there is no such thing, or it can't be loaded as one.
    """
    try:
        return from_pretrained(name, **settings)
    except _NOT_LOADED as error:
        raise ValueError(
            f"{what} that can be loaded, got {name!r}: check the name, or give the folder that "
            f"save_pretrained wrote ({_first_line(error)})"
        ) from error
    except RuntimeError as error:
        # from_pretrained has no error of its own for a head of another size.
        if "mismatch" not in str(error) and "shape" not in str(error):
            raise
        raise ValueError(
            f"{what} with as many labels as the data, got {name!r} with another number: add "
            f"--ignore_mismatched_sizes to give it a new head ({_first_line(error)})"
        ) from error


def load_data_set(
    arguments: Arguments[Any], name: str, config: str | None
) -> Mapping[str, datasets.Dataset]:
    """The splits of a data set of the Hub, or of a folder.

    Raises:
        ValueError: If it can't be loaded.
    """
    try:
        with arguments.training.main_process_first(desc="loading the data"):
            loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(
                name, config, cache_dir=arguments.model.cache_dir
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--dataset_name {name} could not be loaded ({_first_line(error)}): check the name, or "
            "give files instead"
        ) from error
    return loaded


def load_model(arguments: Arguments[Any], auto_class: Any, **config_settings: Any) -> Any:
    """Load config and model of ``--model_name_or_path``.

    Args:
        arguments: Settings of the run.
        auto_class: Such as ``AutoModelForSequenceClassification``.
        **config_settings: What the config must say, such as ``num_labels``.
    """
    model = arguments.model
    name = model.model_name_or_path or ""
    config = load(
        "--config_name must be a config" if model.config_name else _MODEL,
        AutoConfig.from_pretrained,
        model.config_name or name,
        **model.loading(),
    )
    if not model.trust_remote_code:
        _refuse_code(_MODEL, config)
    # Before the config is overwritten: its own order of labels is that of the trained head.
    _check_label_order(arguments, config.label2id, config_settings.get("label2id"))
    config.update(config_settings)
    if model.dropout is not None:
        set_dropout(config, model.dropout)
    return load(
        _MODEL,
        auto_class.from_pretrained,
        name,
        config=config,
        ignore_mismatched_sizes=model.ignore_mismatched_sizes,
        **model.loading(),
    )


def set_dropout(config: PreTrainedConfig, share: float) -> None:
    """Set every dropout that a config knows, by whatever name (dropout, attn_pdrop, ...).

    Args:
        config: Changed in place.
        share: Of the values that are dropped, in [0, 1).

    Raises:
        ValueError: If the config has none.
    """
    found = [
        (part, name)
        for part in _parts(config)
        for name, value in vars(part).items()
        # None stands for another dropout of the same config, as BERT's classifier_dropout does.
        if _DROPOUT.search(name) and (value is None or type(value) in (int, float))
    ]
    if not found:
        raise ValueError(
            f"--dropout must go with a model that has a dropout, got {share} for "
            f"{config.model_type}, whose config has none: leave it out"
        )
    for part, name in found:
        setattr(part, name, share)


def _refuse_code(what: str, config: PreTrainedConfig) -> None:
    """Refuse a config that names code of the Hub, which transformers would fetch and import."""
    for part in _parts(config):
        for attribute in ("_attn_implementation", "_experts_implementation"):
            name = getattr(part, attribute, None)
            if isinstance(name, str) and "/" in name:
                raise ValueError(
                    f"{what} that needs no code of the Hub, got a config with {attribute[1:]} "
                    f"{name!r}: delete the entry, or add --trust_remote_code if you trust it"
                )


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def _check_label_order(
    arguments: Arguments[Any], own: dict[str, int], wanted: dict[str, int] | None
) -> None:
    """Refuse to evaluate a model that numbers the classes in another order than the data."""
    # A head that is trained learns the data's order; one that is used as it is must have it.
    own = {str(name).lower(): number for name, number in own.items()}
    wanted = {name.lower(): number for name, number in (wanted or {}).items()}
    if not arguments.training.do_train and own != wanted and set(own) == set(wanted):
        raise ValueError(
            f"the model must number its labels as the data does, got {own} and {wanted}: evaluate "
            "a model that was fine-tuned with this recipe, or correct label2id in its config and "
            "reorder its head"
        )


def load_teacher(
    arguments: Arguments[Any], auto_class: Any, student: PreTrainedModel
) -> PreTrainedModel | None:
    """Load the teacher, if there is one to learn from, and check that it fits the student.

    Raises:
        ValueError: If its labels or its vocabulary are not the student's.
    """
    name = arguments.distillation.teacher_name_or_path
    if name is None or not arguments.training.do_train:
        return None
    what, trusted = "--teacher_name_or_path must be a model", arguments.model.trust_remote_code
    loading = {"cache_dir": arguments.model.cache_dir, "trust_remote_code": trusted}
    config = load(what, AutoConfig.from_pretrained, name, **loading)
    if not trusted:
        _refuse_code(what, config)
    teacher: PreTrainedModel = load(what, auto_class.from_pretrained, name, **loading)
    for what in ("num_labels", "vocab_size", "image_size"):
        own, other = (getattr(model.config, what, None) for model in (student, teacher))
        if own != other:
            raise ValueError(
                f"the teacher's {what} must be the model's, got {other} and {own}: use a teacher "
                "that was fine-tuned for the same task with the same inputs"
            )
    own, other = student.config.label2id, teacher.config.label2id
    if own and other and set(own) == set(other) and own != other:
        raise ValueError(
            f"the teacher must number its labels as the data does, got {other} and {own}: use a "
            "teacher that was fine-tuned with this recipe, or correct label2id in its config"
        )
    return teacher


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
