"""A CUDA graph's stand-in on the CPU: operations recorded once, done again without their program.

As a graph does, it holds tensors by where they are: a replay reads and writes the storages that
were there when it was recorded, and runs nothing of the Python that led to them.
"""

from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from platon_prune.tensors import capture


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storages(tree):
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(tree)}


class Graph(TorchDispatchMode):
    """``with graph: ...`` records what is dispatched; :meth:`replay` does it again.

    A value that is read is refused, as CUDA refuses a wait while it captures.
    """

    def __init__(self):
        super().__init__()
        self.tape = []
        self._before = {}  # what was there before: recording must leave it as it was
        self._made = set()

    def __enter__(self):
        self._patch = mock.patch.object(capture, "is_capturing", lambda: True)
        self._patch.start()
        self._random = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.stop()
        super().__exit__(*error)
        torch.set_rng_state(self._random)
        for storage, bytes_before in self._before.values():
            storage.copy_(bytes_before)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(each, FakeTensor) for each in _tensors((args, kwargs or {}))):
            return function(*args, **(kwargs or {}))  # which has nothing to be replayed
        if "_local_scalar_dense" in function.name() or "nonzero" in function.name():
            raise RuntimeError(f"{function} waits for the device while a graph is recorded")
        # A list of operands may be another one by the time of a replay.
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs or {}))
        before = _storages((args, kwargs))
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before and storage.data_ptr() not in self._made:
                self._before[storage.data_ptr()] = storage, storage.clone()
        result = function(*args, **kwargs)
        new = [each for each in _tensors(result) if each.untyped_storage().data_ptr() not in before]
        self._made |= _storages(new)
        self.tape.append((function, args, kwargs, result, new))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result, new in self.tape:
            again = function(*args, **kwargs)
            for was, now in zip(_tensors(result), _tensors(again), strict=True):
                if any(was is each for each in new):
                    was.copy_(now)
