"""Names of the studies' rivals, and what they need; without torch, so that help is quick."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from platon_prune.extras import how_to_install

RIVALS = ("tp-taylor", "tp-magnitude", "tp-hessian")


@dataclass(frozen=True)
class _Need:
    """What a rival uses of a package.

    Args:
        package: The module whose presence says that it is installed.
        module: Where it lives.
        name: What must be in it.
        since: A version that has it.
    """

    package: str
    module: str
    name: str
    since: str


# Of single weights, in the order of tables; None needs no more than torch.
_WEIGHT_RIVALS: Mapping[str, _Need | None] = {
    "torchao-pat": _Need(
        "torchao", "torchao.prototype.pat.optim", "GlobalMinSparsityConstraint", "0.18"
    ),
    "nncf": _Need(
        "nncf",
        "nncf.torch.function_hook.pruning.magnitude.schedulers",
        "ExponentialMagnitudePruningScheduler",
        "3.4",
    ),
    "torch-l1": None,
    "one-shot": None,
}
WEIGHT_RIVALS = tuple(_WEIGHT_RIVALS)


def is_installed() -> bool:
    """Whether torch-pruning is there."""
    return _is_there("torch_pruning")


def installed(names: Iterable[str]) -> tuple[str, ...]:
    """Those rivals of single weights whose package is there."""
    needs = {name: _WEIGHT_RIVALS[name] for name in names}
    return tuple(name for name, need in needs.items() if need is None or _is_there(need.package))


def require(name: str) -> None:
    """Raise unless a rival of single weights can run.

    Args:
        name: One of :data:`WEIGHT_RIVALS`.

    Raises:
        ValueError: If its package is not there, or lacks what is used of it.
    """
    need = _WEIGHT_RIVALS[name]
    if need is None:
        return
    if not _is_there(need.package):
        raise ValueError(
            f"{need.package} must be installed for {name}: {how_to_install(need.package)}, or "
            "leave it out of --criteria"
        )
    try:
        found = hasattr(importlib.import_module(need.module), need.name)
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ValueError(
            f"{need.package} must have {need.name} in {need.module} for {name}, as version "
            f"{need.since} does, got one without: install that version, or leave it out of "
            "--criteria"
        )


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
