"""Tests that are written for the CPU, run on another device: what they make is moved there."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

ROOT = Path(__file__).parents[2]
# The core: what decides numbers and masks. The rest is about files, trainers and processes.
CORE = (
    "choice/test_exact_count.py",
    "choice/test_max_amount.py",
    "choice/test_selection.py",
    "groups/test_groups.py",
    "helpers/training_job.py",  # a script of its own as well
    "history/test_history.py",
    "history/test_mask_history.py",
    "masks/test_mechanism.py",
    "masks/test_mechanism_copies.py",
    "masks/test_mechanism_loading.py",
    "masks/test_mechanism_modules.py",
    "masks/test_mechanism_transformers.py",
    "pruning/test_adopt_zeros.py",
    "pruning/test_semi_structured.py",
    "pruning/test_structured.py",
    "scheduling/test_deferred.py",
    "scheduling/test_mixed_precision.py",
    "scheduling/test_regrowth.py",
    "scheduling/test_resume.py",
    "scheduling/test_storage.py",
    "scheduling/test_twin.py",
    "shrinking/test_shrink.py",
    "test_criteria.py",
    "test_parity.py",
)
VARIABLE = "PLATON_TEST_DEVICE"  # for the processes that tests start
RANDOM_LIKE = frozenset({torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli})
RANDOM_IN_PLACE = frozenset(
    getattr(Tensor, name)
    for name in ("uniform_", "normal_", "random_", "bernoulli_", "log_normal_", "exponential_")
)


class OnDevice(TorchFunctionMode):
    """Moves what the core tests make, where they name no device; the library is left alone.

    A default device would reach into the library too, which a user's program does not do, and
    would refuse the generators that tests draw from. All is made on the CPU first, so that random
    numbers are those of a run there.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self._makers = frozenset(_device_constructors())
        self._core = frozenset(str(ROOT / "tests" / name) for name in CORE)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_maker = func in self._makers and kwargs.get("device") is None
        if not (is_maker or func in RANDOM_LIKE or func in RANDOM_IN_PLACE) or not self._is_asked():
            return func(*args, **kwargs)
        if func in RANDOM_IN_PLACE:
            made = args[0].detach().cpu()
            func(made, *args[1:], **kwargs)
            with torch.no_grad():
                return args[0].copy_(made)
        if func in RANDOM_LIKE:
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        if args and isinstance(args[0], Tensor):  # as_tensor(tensor) stays where that is
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        return made.detach().to(self.device).requires_grad_(made.requires_grad)

    def _is_asked(self) -> bool:
        """Whether a core test makes it: by itself, by a helper, or by another library."""
        frame, is_own = sys._getframe(2), True
        package, integrations = str(ROOT / "platon_prune"), str(ROOT / "integrations")
        while frame is not None:
            path = frame.f_code.co_filename
            if is_own and path.startswith((package, integrations)):
                return False
            if path in self._core:
                return True
            is_own = is_own and not path.startswith(str(ROOT / "tests"))
            frame = frame.f_back
        return False
