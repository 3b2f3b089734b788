"""The processes that prune together, on machines that are not what torch was built for."""

import ranks
import torch

from platon_prune.tensors.collectives import Processes


def test_processes_without_the_device_that_torch_was_built_for_exchange_tensors_on_the_cpu(
    tmp_path, monkeypatch
):
    def accelerator(check_available=False):
        return None if check_available else torch.device("cuda")  # as a CUDA build, no driver

    def no_driver():
        raise RuntimeError("Found no NVIDIA driver on your system")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    monkeypatch.setattr(torch.accelerator, "current_device_index", no_driver)
    ranks.join(0, 1, tmp_path / "store")
    try:
        # More than one, so that it asks gloo; the group's only member adds up what it has.
        monkeypatch.setattr(Processes, "size", 2)
        assert Processes().sum(torch.tensor([3, 4])).tolist() == [3, 4]
        assert Processes().maximum([5, -6]) == [5, -6]
    finally:
        ranks.leave()
