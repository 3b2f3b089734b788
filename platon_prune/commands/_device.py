"""The device of a command: one whose work its clock waits for, and that is there."""

from __future__ import annotations


def require_device(name: str) -> None:
    """Raise a ValueError unless ``--device`` names the CPU or a CUDA GPU that is there.

    Args:
        name: As typed.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # Of others no memory could be read, and torch says that they are missing in many ways.
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:1, got {name}")
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(f"--device must be there, got {name} without a GPU: use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"--device must be there, got {name} where the last is cuda:{count - 1}")
