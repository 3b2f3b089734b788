"""One pruned tensor as the scheduler sees it: where it lives, and what is remembered of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from platon_prune.masks.masked import apply_mask_, mask_of, method_of, weight_of
from platon_prune.masks.method import PlatonUnstructured, attach
from platon_prune.masks.targets import Target
from platon_prune.scheduling.set_aside import SetAside
from platon_prune.tensors.bits import count_ones, pack_bits, to_bytes
from platon_prune.tensors.blocks import Scratch, blocks, count_kept
from platon_prune.tensors.shards import (
    Shard,
    are_alike,
    as_placed,
    is_in_mesh,
    is_sharded,
    local_of,
    placed_like,
    placement_of,
    shard_of,
)


class TrackedTensor:
    """One tensor under a mask of ours, or this process's shard of it.

    The tensor itself is looked up at each use: wrapping, sharding, loading or moving a model may
    replace it. What is remembered follows it at :meth:`locate`.

    Args:
        target: The tensor; masks are put on all its sites.
        masking: See :class:`~platon_prune.PlatonScheduler`.
        offset: Global position of its first entry.
        scratch: Temporaries, shared by all tensors.
        puts_back: Whether entries that come back get the values that they had when they went.

    Attributes:
        shard: What this process holds of it; None before :meth:`locate`.
        remembered: The window and the averages by name: flat, of the shard; empty if the criterion
            keeps none, and until the weight has values.
        had_gradient: Whether it had one in the window so far.
    """

    def __init__(
        self, target: Target, masking: str, offset: int, scratch: Scratch, puts_back: bool = False
    ) -> None:
        self.target = target
        self.masking = masking
        self.offset = offset
        self.scratch = scratch
        self.shard: Shard | None = None
        self.remembered = {}
        self.had_gradient = False
        self._set_aside = SetAside() if puts_back else None
        self._placement: Any = None
        self._last_device: torch.device | None = None  # once there is no weight to ask
        self._methods: list[PlatonUnstructured] = []
        mask = None
        for module, name in target.sites:
            self._methods.append(
                attach(module, name, masking=masking, own_keys=target.own_keys, mask=mask)
            )
            mask = mask_of(module, name)

    # --- what is remembered -------------------------------------------------------------------

    @property
    def remembered(self) -> Mapping[str, Tensor]:
        """The window and the averages by name, to be read and written at once."""
        if self._before_use is not None:
            self._before_use()
        return self._remembered

    @remembered.setter
    def remembered(self, values: Mapping[str, Tensor]) -> None:
        self.remember(values, None)

    def remember(
        self, values: Mapping[str, Tensor], before_use: Callable[[], object] | None
    ) -> None:
        """Take the window and the averages from a store.

        Args:
            values: They by name.
            before_use: What to call before they are read or written: a device may be at work on
                those that the host keeps.
        """
        self._remembered, self._before_use = values, before_use

    # --- the tensor ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name before pruning."""
        return self.target.name

    @property
    def parameter(self) -> Tensor:
        """The whole parameter, detached; a DTensor if it is sharded."""
        return weight_of(*self.target.sites[0]).detach()

    @property
    def weight(self) -> Tensor:
        """The shard of the parameter that this process holds, as a plain tensor."""
        return local_of(self.parameter)

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the shard that this process holds, dense.

        A DTensor, as the backward left it, if all of its processes together have to redistribute it
        (``Partial`` sums that have not been added up): see :meth:`redistributed`.
        """
        parameter = weight_of(*self.target.sites[0])
        gradient = parameter.grad
        if gradient is None:
            return None
        # Of an embedding with sparse=True, say; samples need every entry.
        if gradient.layout != torch.strided:
            return gradient.to_dense()
        if are_alike(gradient, parameter):
            return local_of(gradient)
        # A plain gradient of a sharded weight is whole everywhere: its shard needs no exchange.
        return gradient if is_sharded(gradient) else local_of(placed_like(gradient, parameter))

    @property
    def is_in_mesh(self) -> bool:
        """Whether this process takes part in what the processes of a sharded tensor do together."""
        return is_in_mesh(self.parameter)

    def redistributed(self, gradient: Tensor) -> Tensor:
        """The local tensor of a gradient redistributed as the parameter is; collective."""
        return local_of(placed_like(gradient, self.parameter))

    @property
    def mask(self) -> Tensor:
        """The mask of the shard that this process holds, at the first site."""
        return local_of(mask_of(*self.target.sites[0]))

    @property
    def is_finalized(self) -> bool:
        """Whether its mask is gone, even if it carries another's by now."""
        sites = zip(self.target.sites, self._methods, strict=True)
        return not self._methods or any(method_of(*site) is not method for site, method in sites)

    @property
    def device(self) -> torch.device:
        """Where the weight is, or was when it was noticed that it is finalized."""
        if self._last_device is not None:
            return self._last_device
        module, name = self.target.sites[0]
        # Its mask may be gone by now, and the parameter back under its own name.
        held = (module._parameters.get(key) for key in (f"{name}_orig", name))
        return next((tensor.device for tensor in held if tensor is not None), torch.device("cpu"))

    @property
    def description(self) -> dict[str, Any]:
        """What processes must have in common, beside the settings."""
        parameter = self.parameter
        return {
            f"shape of {self.name}": tuple(parameter.shape),
            f"dtype of {self.name}": str(parameter.dtype),
            f"own_keys of {self.name}": self.target.own_keys,
        }

    @property
    def whole_numel(self) -> int:
        """Number of entries that all processes hold together."""
        return self.parameter.numel()

    # --- where it is --------------------------------------------------------------------------

    def locate(self) -> bool:
        """Find out how the weight is sharded by now; what is remembered is cut to its shard.

        Returns:
            Whether its placement is a new one.
        """
        parameter = self.parameter
        placement = placement_of(parameter)
        if self.shard is not None and placement == self._placement:
            return False
        shard = shard_of(parameter)
        if self.remembered and self.shard is not None:
            if self._placement is not None:
                raise RuntimeError(
                    f"{self.name} must stay sharded as it was when its scores began, got another "
                    "placement: save the scheduler's state, shard, set pruning up again and load it"
                )
            self.remembered = {
                name: shard.of(values.view(parameter.shape)).reshape(-1)
                for name, values in self.remembered.items()
            }
        if self.shard is not None and self._placement is None and self._set_aside is not None:
            self._set_aside.cut_to_(shard)
        self.shard, self._placement = shard, placement
        return True

    def settle(self, replica: int, num_replicas: int) -> None:
        """Note how many processes hold the same shard, and which of these replicas this one is.

        From then on each process counts its owned slice, and every entry is counted once.
        """
        assert self.shard is not None
        self.shard = replace(self.shard, replica=replica, num_replicas=num_replicas)

    @property
    def is_alone(self) -> bool:
        """Whether this process holds all of it."""
        return self._placement is None

    def require_mask(self) -> None:
        """Raise a RuntimeError unless the tensor is still the one that was set up."""
        if self.is_finalized:
            raise RuntimeError(
                f"{self.name} must carry the mask of this scheduler, but it was finalized or "
                "pruned anew: finalize the rest with platon_prune.remove(model), or set "
                "pruning up again to prune further"
            )
        first = None
        for module, name in self.target.sites:
            weight = weight_of(module, name)
            first = weight if first is None else first
            # Loading with assign=True, for one, unties what was one parameter at set-up.
            if weight is not first:
                raise RuntimeError(
                    f"{self.name} must be one parameter shared by {len(self.target.sites)} modules "
                    "as it was at set-up, but they hold parameters of their own now: tie the "
                    "weights again after loading"
                )
            if weight.shape != getattr(module, f"{name}_mask").shape:
                raise RuntimeError(
                    f"{self.name} must keep its shape {tuple(mask_of(module, name).shape)}, got "
                    f"{tuple(weight.shape)}: finalize before changing a layer's size, and shard "
                    "with fully_shard (FSDP2), which does not flatten as FSDP1 and DeepSpeed do"
                )
            if weight.is_meta:
                raise RuntimeError(
                    f"{self.name} must have values, got a tensor on the meta device: materialise "
                    "the model (to_empty, then load its weights) before it is trained"
                )

    # --- masks --------------------------------------------------------------------------------

    def adopt_zeros(self) -> tuple[Any, int, bytes]:
        """Prune what is zero, -0 too.

        Returns:
            Which shard this process holds, how many zeros it has, and a digest of where they are.
        """
        weight, mask = self.weight, self.mask
        if weight.is_meta:
            raise ValueError(
                f"{self.name} must have values whose zeros can be adopted, got a tensor on the "
                "meta device: load the model's weights first"
            )
        # ne, so that -0 counts as zero and NaN as a value.
        for values, kept in blocks(weight, mask):
            torch.ne(values, 0, out=kept)
        # A digest is exchanged instead of the mask, which may be as large as the model.
        bits = pack_bits(mask)
        digest = hashlib.blake2b(to_bytes(bits)).digest()
        return shard_of(self.parameter).key, mask.numel() - count_ones(bits), digest

    def apply_mask(self) -> None:
        """Zero what the mask prunes."""
        apply_mask_(*self.target.sites[0], self.scratch)

    def share_mask(self) -> None:
        """Bring the mask to the other sites of a shared tensor."""
        first = self.mask
        for module, name in self.target.sites[1:]:
            mask = local_of(mask_of(module, name))
            if mask is not first:  # moving a model copies its buffers apart
                mask.copy_(first)

    def put_back(self, before: Tensor) -> None:
        """After a choice: give entries that came back their values, and set aside what goes.

        Args:
            before: The mask before the choice.
        """
        assert self._set_aside is not None
        self._set_aside.exchange_(self.weight, before, self.mask)

    def count_kept(self, owned: bool) -> int:
        """How many entries are not zero: of the shard, or only of its owned slice."""
        weight, mask = self.weight, self.mask
        if not owned:
            return count_kept(weight, mask)
        assert self.shard is not None
        return count_kept(weight.reshape(-1)[self.shard.owned], mask.view(-1)[self.shard.owned])

    def copy_of_mask(self) -> Tensor:
        """A copy of the mask, placed as the weight is."""
        return as_placed(self.mask.clone(), self.parameter)

    # --- what is kept, and saved --------------------------------------------------------------

    def bytes(self) -> dict[str, int]:
        """Memory of this process for its mask, and for values that were set aside."""
        aside = {} if self._set_aside is None else {"set_aside": self.weight.nbytes}
        return {"mask": self.weight.numel(), **aside}

    def state_dict(self) -> dict[str, Any]:
        """Copies of what is remembered, placed as the weight is."""
        weight, parameter = self.weight, self.parameter
        state: dict[str, Any] = {"mask": self.mask}
        state |= {name: values.view(self.mask.shape) for name, values in self.remembered.items()}
        if self.masking == "window":
            # What pruned weights trained to since the choice: a saved model may lack these.
            state["refilled"] = torch.where(self.mask, 0, weight)
        if self._set_aside is not None:
            state["set_aside"] = self._set_aside.values(weight)
        placed: dict[str, Any] = {
            name: as_placed(tensor.clone(), parameter) for name, tensor in state.items()
        }
        return placed | {"had_gradient": self.had_gradient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned for a tensor of this name and shape."""
        parameter, weight = self.parameter, self.weight
        for module, name in self.target.sites:
            # In place: the modules, and a compiled graph, hold this very mask.
            local_of(mask_of(module, name)).copy_(local_of(placed_like(state["mask"], parameter)))
        for name, values in self.remembered.items():
            values.view(weight.shape).copy_(local_of(placed_like(state[name], parameter)))
        self.had_gradient = state["had_gradient"]
        if self._set_aside is not None:
            aside = local_of(placed_like(state["set_aside"], parameter))
            self._set_aside.values(weight).copy_(aside)
        if self.masking == "window":
            refilled = local_of(placed_like(state["refilled"], parameter)).to(weight)
            weight.copy_(torch.where(self.mask, weight, refilled))
        else:
            self.apply_mask()

    def warn_when_removed(self, warn: Callable[[Tensor | None], None]) -> None:
        """Call a function, with its gradient, before the mask is removed at one of its sites."""
        for method in self._methods:
            method.before_removal = warn

    def detach(self) -> None:
        """Finalize it at all its sites."""
        for module, name in self.target.sites:
            prune.remove(module, name)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Free what is remembered, and let go of the modules, once the run has ended."""
        # Recorded masks are still handed out on the device where training ran.
        self._last_device = self.device
        # A scheduler kept for its history must not keep the model alive.
        self.target = replace(self.target, sites=())
        self._methods = []
        self.remembered = {}
        self._set_aside = None

    def expected_entries(self) -> tuple[str, ...]:
        """The entries of its state that have the weight's shape."""
        refilled = ("refilled",) if self.masking == "window" else ()
        aside = () if self._set_aside is None else ("set_aside",)
        return ("mask", *self.remembered, *refilled, *aside)
