"""A linear layer with INT4 weights and FP8 activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import layout
from ..errors import check_device, check_dtype, check_shape, refuse
from ..int4fp8 import Activation, Int4Weight, PackedInt4Weight, int4fp8_gemm
from ..quantizer import fp8_quantize

_NAME = "wlib.nn.Int4Fp8Linear"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Int4Fp8Linear(nn.Module):
    """y = x W^T + b with W packed in INT4 and x quantised to E4M3 per token, for inference.

    The constructor makes a layer of zeros for a state dict to fill; `from_linear`, `from_weight`
    and `from_packed` make one from weights. `state_dict` carries the shape and the layout version
    as a tensor of integers, so that weights packed otherwise are refused instead of misread.
    Moving the module moves its buffers; a change of dtype leaves them as they are.

    Args:
        in_features, out_features: K and N.
        bias: whether the layer adds a bias.
        group_size: columns that share a scale: 32, 64, a multiple of 128, or K if 32 divides it.
        has_zero_point, has_channel_scale: which optional tensors the packed weight holds.
        has_k_permutation: whether the weight's columns stand in another order than x's.
        device: where the buffers live.

    Attributes:
        packed_weight: uint8 [ceil(N/64), bytes per row block], see `wlib.PackedInt4Weight`.
        k_permutation: None, or int32 [K]: column j of the weight is for x[..., k_permutation[j]].
        bias: float32 [N] or None.

    Raises:
        ValueError: group_size does not fit in_features.
    """

    packed_weight: Tensor
    k_permutation: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int = 128,
        *,
        has_zero_point: bool = False,
        has_channel_scale: bool = False,
        has_k_permutation: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        layout.check_group_size(_NAME, in_features, group_size)
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        self.has_zero_point = has_zero_point
        self.has_channel_scale = has_channel_scale
        shape = layout.packed_shape(out_features, in_features, group_size, has_zero_point)
        packed = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.register_buffer("packed_weight", packed)
        order = torch.arange(in_features, dtype=torch.int32, device=device)
        self.register_buffer("k_permutation", order if has_k_permutation else None)
        zeros = torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None
        self.register_buffer("bias", zeros)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, group_size: int = 128, *, clip_search: bool = False
    ) -> Int4Fp8Linear:
        """Quantise a linear layer, on its device; see `wlib.Int4Weight.quantize` for the rest."""
        weight = Int4Weight.quantize(linear.weight, group_size, clip_search=clip_search)
        return cls.from_weight(weight, linear.bias).train(linear.training)

    @classmethod
    def from_weight(
        cls, weight: Int4Weight, bias: Tensor | None = None, k_permutation: Tensor | None = None
    ) -> Int4Fp8Linear:
        """A layer of an INT4 weight [N, K]; the rest as in `from_packed`."""
        return cls.from_packed(weight.pack(), bias, k_permutation)

    @classmethod
    def from_packed(
        cls,
        packed: PackedInt4Weight,
        bias: Tensor | None = None,
        k_permutation: Tensor | None = None,
    ) -> Int4Fp8Linear:
        """A layer that shares the data of a packed weight [N, K].

        Args:
            packed: the weight.
            bias: None, or [N] of any floating dtype.
            k_permutation: None, or int32 [K], a permutation; see the attribute.
        """
        module = cls(
            packed.k,
            packed.n,
            bias is not None,
            packed.group_size,
            has_zero_point=packed.has_zero_point,
            has_channel_scale=packed.has_channel_scale,
            device="meta",
        )
        module.packed_weight = packed.data
        if k_permutation is not None:
            check_dtype(_NAME, "k_permutation", k_permutation, torch.int32)
            check_shape(_NAME, "k_permutation", k_permutation, [packed.k])
            check_device(_NAME, "k_permutation", k_permutation, packed.data.device)
            module.k_permutation = k_permutation
        if bias is not None:
            check_dtype(_NAME, "bias", bias, *_FLOATS)
            check_shape(_NAME, "bias", bias, [packed.n])
            check_device(_NAME, "bias", bias, packed.data.device)
            module.bias = bias.detach().to(torch.float32, copy=True)
        return module

    @property
    def packed(self) -> PackedInt4Weight:
        """The packed weight, sharing its data with the layer."""
        return PackedInt4Weight(
            self.packed_weight,
            self.out_features,
            self.in_features,
            self.group_size,
            self.has_zero_point,
            self.has_channel_scale,
        )

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """Apply the layer.

        Args:
            x: float32, float16 or bfloat16 [..., K]; copied first if it is not contiguous.
            activation: what follows, see `wlib.int4fp8_gemm`.

        Returns:
            [..., N], or [..., N / 2] with "silu_mul", in the dtype of x or, as with nn.Linear, of
            the enclosing autocast.

        Raises:
            TypeError: x has another dtype.
            ValueError: x has another last dimension than K or lives on another device.
            NotImplementedError: no kernel serves the device of x.
        """
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        out_dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        xq, x_scale = fp8_quantize(x.contiguous())
        if self.k_permutation is not None:  # a token's scale is that of its columns in any order
            octets = xq.view(torch.uint8).index_select(-1, self.k_permutation)
            xq = octets.view(xq.dtype)
        options: dict[str, Any] = {"activation": activation, "prefetch_weight": True}
        return int4fp8_gemm(xq, self.packed, x_scale, self.bias, out_dtype, **options)

    def get_extra_state(self) -> Tensor:
        """What the packed bytes mean; a tensor, so that safetensors can hold it."""
        flags = [int(self.has_zero_point), int(self.has_channel_scale)]
        shape = [self.out_features, self.in_features, self.group_size]
        return torch.tensor([layout.LAYOUT_VERSION, *shape, *flags])

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse packed weights whose bytes mean something else than this layer takes them for."""
        expected = self.get_extra_state().tolist()
        if state.tolist() != expected:
            fields = "[layout_version, n, k, group_size, has_zero_point, has_channel_scale]"
            refuse(_NAME, f"{fields} = {expected}", state.tolist(), "state_dict")

    def extra_repr(self) -> str:
        """The arguments of the constructor, as `print` shows them."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}, group_size={self.group_size}"
        text += ", has_zero_point=True" if self.has_zero_point else ""
        text += ", has_channel_scale=True" if self.has_channel_scale else ""
        return text + (", has_k_permutation=True" if self.k_permutation is not None else "")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4Fp8Linear:
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Casts spare the integer weight but not the bias, which the kernel adds in float32.
        if bias is not None and self.bias is not None and self.bias.dtype != bias.dtype:
            self.bias = bias.to(self.packed_weight.device)
        return self
