"""Tensor parallelism for INT4 layers, as styles for `torch.distributed.tensor.parallel`.

    mesh = init_device_mesh("cuda", (world,))
    plan = {"*.up_proj": ColwiseInt4(), "*.gate_proj": ColwiseInt4(), "*.down_proj": RowwiseInt4()}
    parallelize_module(model, mesh, plan)

A packed weight cannot be cut, since its bytes are in the order of a kernel. Each rank therefore
unpacks the layer, keeps its part and packs that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ParallelStyle

from .errors import refuse
from .nn import Int4Fp8Linear


class ColwiseInt4(ParallelStyle):
    """Each rank computes N/world of an `Int4Fp8Linear`'s output features.

    Takes the whole x [..., K] on every rank and gives y [..., N/world]. Bit for bit the columns of
    the undivided layer where the kernel sums in the same order, as the CPU kernels do.

    Raises:
        TypeError: the module is no `Int4Fp8Linear`.
        ValueError: the mesh's size does not divide N.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = _keep_part(module, 0, device_mesh)
        if layer.bias is not None:
            layer.bias = layer.bias.chunk(device_mesh.size())[device_mesh.get_local_rank()].clone()
        return layer


class RowwiseInt4(ParallelStyle):
    """Each rank multiplies K/world of an `Int4Fp8Linear`'s input features; the ranks add up.

    Takes x [..., K/world], as `ColwiseInt4` gives it, and gives the whole y [..., N] on every rank.
    A rank quantises its part of a token with a scale of its own: finer than the undivided layer's,
    not equal to it. The partial sums are rounded to the dtype of x before they are added.

    Raises:
        TypeError: the module is no `Int4Fp8Linear`.
        ValueError: the mesh's size does not divide the groups of a row, or the layer has a
            k_permutation, whose columns come from every rank's part of x.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if getattr(module, "k_permutation", None) is not None:
            refuse("wlib.parallel.RowwiseInt4", "columns in order", "a k_permutation", "module")
        layer = _keep_part(module, 1, device_mesh)
        if layer.bias is not None and device_mesh.get_local_rank() != 0:
            layer.bias = torch.zeros_like(layer.bias)  # the sum must hold it once

        def add_up(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            partial = DTensor.from_local(y, device_mesh, [Partial()], run_check=False)
            whole = partial.redistribute(placements=[Replicate()])
            return whole.to_local()

        layer.register_forward_hook(add_up)
        return layer


def _keep_part(module: nn.Module, dim: int, mesh: DeviceMesh) -> Int4Fp8Linear:
    if not isinstance(module, Int4Fp8Linear):
        expected = "an Int4Fp8Linear"
        refuse("wlib.parallel", expected, type(module).__name__, "module", TypeError)
    part = module.packed.unpack().shard(dim, mesh.get_local_rank(), mesh.size())
    module.packed_weight = part.pack().data
    module.in_features, module.out_features = part.k, part.n
    return module
