"""A device named "other", whose tensors compute on the CPU but are held apart from the CPU's, as a GPU's are.

It shows, without a GPU, what goes wrong only on one: operations refuse tensors of both devices where CUDA would, and
what makes the CPU wait for the device is counted. To be imported in a process of its own: it stays there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("other")
torch.other.get_amp_supported_dtype = lambda: []  # type: ignore[attr-defined]
OTHER = torch.device("other:0")

waits: list[str] = []
"""The operations so far that the CPU could not go on from until the device had done all before."""

MAY_MIX = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh", "aten::_ctc_loss", "aten::_ctc_loss_backward")
FOUND_ON_THE_DEVICE = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Elsewhere(torch.Tensor):
    """A tensor on the other device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> Elsewhere:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=OTHER,
            requires_grad=requires_grad,
        )
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        waits.append("tolist")
        return self.inner.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.inner, spec)

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # checkpoints hold tensors of the CPU
        return self.inner.__reduce_ex__(protocol)


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    inside = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    outside = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim]
    name, device = function.name().split(".")[0], kwargs.get("device")
    here = isinstance(args[0], Elsewhere) if name == "aten::copy_" else bool(inside) if device is None else None
    on_other = torch.device(device).type == "other" if here is None else here
    if name in ("aten::_to_copy", "aten::copy_"):
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if (inside and not on_other) or (outside and on_other and not non_blocking):
            waits.append(name)
    elif inside and (name in FOUND_ON_THE_DEVICE or (name in INDEXING and _waits_for_indices(args))):
        waits.append(name)
    elif inside and outside and name not in MAY_MIX:
        shapes = [tuple(tensor.shape) for tensor in outside]
        raise RuntimeError(f"{name}: tensors of the CPU, of shapes {shapes}, among those of the other device")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    known: dict[int, Elsewhere] = {}  # in-place operations return what they were given

    def enter(leaf: Any) -> Any:
        if isinstance(leaf, Elsewhere):
            known[id(leaf.inner)] = leaf
            return leaf.inner
        return leaf

    def leave(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    result = function(*tree_map(enter, args), **tree_map(enter, kwargs))
    return tree_map(leave, result) if on_other else result


def _waits_for_indices(args: tuple) -> bool:
    """Whether they are uploaded first, or it depends on their values how many there are."""
    indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
    if not isinstance(args[0], Elsewhere):
        raise RuntimeError("indices of the other device for a tensor of the CPU")
    return any(not isinstance(index, Elsewhere) or index.dtype == torch.bool for index in indices)


class _Dispatch(TorchDispatchMode):
    """Sees the operations that create tensors, which have none of the other device among their arguments."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What does not come by as an operation: tensors of numbers, and kernels that each device has of its own."""

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("tensor", "as_tensor", "new_tensor") and not isinstance(args[-1], torch.Tensor):
            device = kwargs.pop("device", args[0].device if name == "new_tensor" else None)
            dtype = kwargs.pop("dtype", args[0].dtype if name == "new_tensor" else None)
            with torch._C.DisableTorchFunction():
                return torch.tensor(args[-1], dtype=dtype, **kwargs).to(device, non_blocking=True)
        if name in ("lstm", "gru") and isinstance(args[0], Elsewhere):
            before = len(waits)
            out = function(*tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Elsewhere) else leaf, args), **kwargs)
            del waits[before:]
            return tree_map(lambda leaf: leaf.to(OTHER, non_blocking=True), out)
        return function(*args, **kwargs)


@contextmanager
def other_device():
    """Within it, there is such a device."""
    with mock.patch("torch.inference_mode", torch.no_grad), _Functions(), _Dispatch():  # a wrapper has no views there
        yield


class OtherAccelerator(Accelerator):
    """For Lightning's trainer: `accelerator="other"`, `strategy="other"`."""

    def setup_device(self, device: torch.device) -> None: ...
    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [OTHER]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "other"


AcceleratorRegistry.register("other", OtherAccelerator)
StrategyRegistry.register("other", SingleDeviceStrategy, device=OTHER)
