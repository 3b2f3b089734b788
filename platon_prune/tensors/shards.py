"""Tensors of which each process holds a shard: which entries those are, and tensors placed alike.

All that is known here of DTensors and of ``fully_shard`` is in this file. A plain tensor is one
shard, which holds all of it.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """The shard of a tensor that this process holds.

    Args:
        shape: Of the whole tensor.
        indices: For each dimension, which of its indices the shard has (int64); None for all.
        replica: Number of this process among those that hold the same shard, from 0.
        num_replicas: How many processes hold the same shard.
    """

    shape: torch.Size
    indices: tuple[Tensor | None, ...]
    replica: int = 0
    num_replicas: int = 1

    @property
    def local_shape(self) -> torch.Size:
        """The shape of the shard."""
        return torch.Size(
            size if index is None else index.numel()
            for size, index in zip(self.shape, self.indices, strict=True)
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two processes if, and only if, they hold the same shard."""
        return tuple(
            None if index is None else hashlib.blake2b(array("q", index.tolist())).digest()
            for index in self.indices
        )

    @property
    def owned(self) -> slice:
        """The owned slice of the flat shard: what this process counts, so that nobody else does."""
        numel = self.local_shape.numel()
        # Cut as evenly as whole numbers allow; the slices of all replicas join without a gap.
        first, last = (numel * i // self.num_replicas for i in (self.replica, self.replica + 1))
        return slice(first, last)

    def positions(self, local: Tensor) -> Tensor:
        """Flat positions in the whole tensor of flat positions in the shard; int64."""
        # The common case, whole or alone, must cost nothing.
        if all(index is None for index in self.indices):
            return local
        whole, stride = torch.zeros_like(local), 1
        dimensions = zip(self.shape, self.local_shape, self.indices, strict=True)
        for size, local_size, index in reversed(list(dimensions)):
            along = local % local_size
            whole += (along if index is None else index[along]) * stride
            local, stride = local // local_size, stride * size
        return whole

    def of(self, whole: Tensor) -> Tensor:
        """Cut the shard out of a plain tensor of the whole shape; never shares its memory."""
        shard = whole
        # Dimension by dimension: what a process holds is a product of sets of indices.
        for dimension, index in enumerate(self.indices):
            if index is not None:
                shard = shard.index_select(dimension, index.to(shard.device))
        return shard.clone() if shard is whole else shard


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    # Not imported for it: where nothing has, there are none, and it takes longer than we do.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_in_mesh(tensor: Tensor) -> bool:
    """Whether this process is one of those that a tensor is spread over; True for a plain one."""
    return not is_sharded(tensor) or tensor.device_mesh.get_coordinate() is not None  # type: ignore[attr-defined]


def local_of(tensor: Tensor) -> Tensor:
    """The shard that this process holds, sharing its memory."""
    if not is_sharded(tensor):
        return tensor
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    # A local tensor may still be on its way, as torch's functional collectives return it.
    return local.wait() if hasattr(local, "wait") else local  # type: ignore[no-any-return]


def whole_of(tensor: Tensor) -> Tensor:
    """The whole tensor, plain; of a sharded one gathered, which all of its processes must do."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def shard_of(tensor: Tensor) -> Shard:
    """Which shard of the whole tensor this process holds."""
    if not is_sharded(tensor):
        return Shard(tensor.shape, (None,) * tensor.ndim)
    device = tensor.to_local().device  # type: ignore[attr-defined]
    # Positions are values: they are needed before the weight has any.
    device = torch.device("cpu") if device.type == "meta" else device
    return Shard(tensor.shape, tuple(_indices(tensor, d, device) for d in range(tensor.ndim)))


def placed_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Redistribute a tensor of the weight's whole shape to the placements of the weight.

    From a plain tensor each process takes its shard, without asking the others; a DTensor that is
    placed otherwise takes all of its processes to call this.
    """
    if are_alike(tensor, weight):
        return tensor
    if is_sharded(tensor):
        if is_sharded(weight) and tensor.device_mesh == weight.device_mesh:  # type: ignore[attr-defined]
            return tensor.redistribute(placements=weight.placements)  # type: ignore[attr-defined,operator,no-any-return]
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return as_placed(shard_of(weight).of(tensor), weight) if is_sharded(weight) else tensor


def are_alike(tensor: Tensor, weight: Tensor) -> bool:
    """Whether both are plain, or are placed over the same processes in the same way."""
    if not (is_sharded(tensor) and is_sharded(weight)):
        return is_sharded(tensor) == is_sharded(weight)
    return bool(placement_of(tensor) == placement_of(weight))


def placement_of(tensor: Tensor) -> Any:
    """What two tensors have in common that are placed alike; None for a plain one."""
    if not is_sharded(tensor):
        return None
    return tensor.device_mesh, tuple(tensor.placements)  # type: ignore[attr-defined]


def as_placed(local: Tensor, weight: Tensor) -> Tensor:
    """A DTensor with the weight's placements, of its local tensor; ``local`` for a plain weight."""
    if not is_sharded(weight):
        return local
    # Of the whole tensor, contiguous: from_local can't know them from a shard alone.
    strides = torch.empty(weight.shape, device="meta").stride()
    if local.device.type not in ("meta", weight.device_mesh.device_type):  # type: ignore[attr-defined]
        return _offloaded(local, weight, strides)
    return sys.modules["torch.distributed.tensor"].DTensor.from_local(  # type: ignore[no-any-return]
        local,
        weight.device_mesh,  # type: ignore[attr-defined]
        weight.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=weight.shape,
        stride=strides,
    )


def _offloaded(local: Tensor, weight: Any, strides: tuple[int, ...]) -> Tensor:
    """As ``from_local``, which would move a tensor in host memory to the mesh's devices."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(weight.shape, strides, local.dtype)
    spec = DTensorSpec(weight.device_mesh, tuple(weight.placements), tensor_meta=meta)
    return DTensor(local, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _indices(tensor: Any, dimension: int, device: torch.device) -> Tensor | None:
    """Which indices of a dimension this process holds; None for all. torch itself says it."""
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor import Shard as ShardPlacement  # torch's word: over a dimension
    from torch.distributed.tensor.placement_types import _StridedShard

    placements: list[Any] = []
    for placement in tensor.placements:
        if getattr(placement, "dim", None) not in (dimension, dimension - tensor.ndim):
            placements.append(Replicate())
        elif isinstance(placement, _StridedShard):
            placements.append(_StridedShard(0, split_factor=placement.split_factor))
        else:
            placements.append(ShardPlacement(0))
    if all(isinstance(placement, Replicate) for placement in placements):
        return None
    # torch shards the numbers as it does the tensor, uneven and strided shards included.
    index = torch.arange(tensor.shape[dimension])
    if tensor.device_mesh.get_coordinate() is None:
        return index[:0].to(device)  # this process is none of the mesh's
    placed = distribute_tensor(index, tensor.device_mesh, placements, src_data_rank=None)
    return placed.to_local().to(device)


# --- fully_shard --------------------------------------------------------------------------------
#
# It keeps every parameter by (module, name) and registers the sharded or the gathered one under
# that name, so whoever renames a parameter has to tell it.

_KEPT: WeakKeyDictionary[nn.Module, dict[str, tuple[ref[Any], ref[Any]]]] = WeakKeyDictionary()


def registered(module: nn.Module, key: str) -> nn.Parameter:
    """The parameter of that name; of a module under ``fully_shard`` always the sharded one.

    After a forward the gathered one may still be there, which is then given up.
    """
    kept = _kept(module, key)
    if kept is None:
        return module._parameters[key]  # type: ignore[return-value]
    parameter, group = kept
    if module._parameters[key] is not parameter.sharded_param:
        # What is written to the gathered parameter is lost when fully_shard frees it.
        group.reshard()
    return module._parameters[key]  # type: ignore[return-value]


def rename(module: nn.Module, old: str, new: str) -> None:
    """Tell ``fully_shard`` that the parameter has another name from here on."""
    kept = _kept(module, old)
    if kept is None:
        return
    info = kept[0]._module_info
    if info.module is module and info.param_name == old:
        info.param_name = new
    for i, (site, name) in enumerate(_shared(info)):
        if site is module and name == old:
            info.shared_param_names[i] = new
    _KEPT[module][new] = _KEPT[module].pop(old)


def _kept(module: nn.Module, key: str) -> tuple[Any, Any] | None:
    """What ``fully_shard`` keeps of a parameter, and its group; None if it does not manage it."""
    if not getattr(module, "_is_fsdp_managed_module", False):
        return None
    if key not in _KEPT.get(module, {}):
        for parameter, group, site, name in _everything_kept():
            _KEPT.setdefault(site, {})[name] = ref(parameter), ref(group)
    references = _KEPT.get(module, {}).get(key)
    return None if references is None else (references[0](), references[1]())


def _everything_kept() -> Iterator[tuple[Any, Any, nn.Module, str]]:
    from torch.distributed._composable_state import _module_state_mapping

    for reference in list(_module_state_mapping.values()):
        for group in _groups(reference()):
            for parameter in group.fsdp_params:
                info = parameter._module_info
                yield parameter, group, info.module, info.param_name
                yield from ((parameter, group, site, name) for site, name in _shared(info))


def _groups(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)  # other states have none
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]  # before torch 2.12
    return [group for group in groups if group is not None]


def _shared(info: Any) -> list[tuple[nn.Module, str]]:
    return list(zip(info.shared_modules, info.shared_param_names, strict=True))
