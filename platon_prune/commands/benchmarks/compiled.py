"""The demo's last check: a finalized model and its compiled self give the same outputs."""

from __future__ import annotations

import torch
from torch import nn

from platon_prune.commands.benchmarks.digits import Digits, Settings, logits


def check_compiled(model: nn.Module, digits: Digits, settings: Settings) -> int:
    """Run a model through ``torch.compile``, compare the logits, and print the outcome.

    Returns:
        0 if they are equal within the tolerance or if nothing can compile here, else 1.
    """
    expected = logits(model, digits)
    try:
        compiled = logits(torch.compile(model, fullgraph=True), digits)  # type: ignore[arg-type]
    except Exception as error:
        reason = reason_of(error)
        if reason is None:
            raise
        print(f"compile check skipped: {reason}")
        return 0
    difference = float((compiled - expected).abs().max())
    equal = difference <= settings.tolerance
    print(
        f"torch.compile of the finalized model: {'equal' if equal else 'DIFFERENT'} outputs "
        f"(largest difference of a logit {difference:.1g}, allowed {settings.tolerance:.0e})"
    )
    return 0 if equal else 1


def reason_of(error: BaseException) -> str | None:
    """What is missing on this machine if that is why something did not compile, else None."""
    # On the CPU the generated code is C++, and a user may have no compiler or no Python headers.
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    causes = _causes(error)
    if any(isinstance(cause, InvalidCxxCompiler) for cause in causes):
        return "no compiler"
    if any(isinstance(cause, CppCompileError) for cause in causes):
        return "the C++ compiler failed (are Python's headers there?)"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and everything that it was raised from."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain += [cause, *filter(None, [getattr(cause, "inner_exception", None)])]
        cause = cause.__cause__ or cause.__context__
    return chain
