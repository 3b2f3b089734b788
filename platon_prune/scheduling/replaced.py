"""`Modules`: notices that a pruned module was replaced by another while the model is trained."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from platon_prune.masks.targets import Target
from platon_prune.warning import PruningWarning


class Modules:
    """The modules of a model, which its user may replace during a run: ``model[0] = ...``.

    Args:
        model: The model; None, or anything but a module, if it is not known.
    """

    def __init__(self, model: Any = None) -> None:
        # Weak: a scheduler that is kept for its history must not keep the model alive.
        self._model = weakref.ref(model) if isinstance(model, nn.Module) else None
        self._named: set[str] = set()

    def __reduce__(self) -> Any:
        # A copy's tensors are those of another model, of which nothing is known.
        return type(self), ()

    @property
    def model(self) -> nn.Module | None:
        """The model, while there is one and it is known."""
        return self._model() if self._model is not None else None

    def warn_of_replaced(self, targets: Iterable[Target]) -> None:
        """Name the tensors, each once, whose modules are no part of the model any more."""
        model = self.model
        if model is None:
            return
        present = set(map(id, model.modules()))
        gone = [
            target.name
            for target in targets
            if target.name not in self._named
            and any(id(module) not in present for module, _ in target.sites)
        ]
        if gone:
            self._named.update(gone)
            PruningWarning.warn(
                f"{', '.join(gone)} of the model is not what is pruned any more: its module was "
                "replaced by another, which carries no mask; replace modules before pruning is set "
                "up, or set it up again"
            )
