"""The experts of a gated mixture, with INT4 weights and FP8 activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import layout
from ..errors import check_device, check_dtype, check_shape, refuse
from ..experts import PackedInt4Experts, int4fp8_gemm_grouped, pack_experts, sort_by_expert
from ..int4fp8 import Int4Weight
from ..quantizer import fp8_quantize

_NAME = "wlib.nn.Int4Fp8Experts"


class _Format(NamedTuple):
    n: int
    k: int
    group_size: int
    has_zero_point: bool
    has_channel_scale: bool


class Int4Fp8Experts(nn.Module):
    """sum_j weight_j * (silu(x Wg^T) * (x Wu^T)) Wd^T over the experts j that a token is sent to.

    Two grouped matmuls, however many experts there are: gate, up and silu_mul in one, down in the
    other. The router stays outside; experts have no biases. `state_dict` carries shapes and layout
    version, so that weights packed otherwise are refused.

    Args:
        gate_up: packed weights [E, 2 F, H], whose rows are those of gate and up in turn; of zeros
            for a state dict to fill, see `wlib.PackedInt4Experts.zeros`.
        down: packed weights [E, H, F].

    Attributes:
        gate_up_weight, down_weight: uint8, the data of the two; moving the module moves them.

    Raises:
        ValueError: the two do not fit.
    """

    gate_up_weight: Tensor
    down_weight: Tensor

    def __init__(self, gate_up: PackedInt4Experts, down: PackedInt4Experts) -> None:
        super().__init__()
        expected = [gate_up.experts, gate_up.k, gate_up.n // 2]
        found = [down.experts, down.n, down.k]
        if gate_up.n % 2:
            refuse(
                _NAME, "gate_up with an even n, rows of gate and up in turn", gate_up.n, "gate_up"
            )
        if found != expected:
            refuse(_NAME, f"down with [experts, n, k] = {expected}", found, "down")
        check_device(_NAME, "down", down.data, gate_up.data.device)
        self.register_buffer("gate_up_weight", gate_up.data)
        self.register_buffer("down_weight", down.data)
        self._formats = [
            _Format(p.n, p.k, p.group_size, p.has_zero_point, p.has_channel_scale)
            for p in (gate_up, down)
        ]

    @classmethod
    def quantize(
        cls,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        group_size: int = 128,
        *,
        clip_search: bool = False,
    ) -> Int4Fp8Experts:
        """Quantise plain weights, on their device.

        Args:
            gate, up: floating point [E, F, H].
            down: floating point [E, H, F].
            group_size, clip_search: as `wlib.Int4Weight.quantize` takes them.

        Raises:
            TypeError: a weight is not floating point.
            ValueError: a shape, a device or group_size does not fit.
        """
        if gate.dim() != 3:
            refuse(_NAME, "gate of shape [E, F, H]", list(gate.shape), "gate")
        check_shape(_NAME, "up", up, gate.shape)
        options = {"clip_search": clip_search}
        pairs = [
            Int4Weight.interleave(
                Int4Weight.quantize(g, group_size, **options),
                Int4Weight.quantize(u, group_size, **options),
            )
            for g, u in zip(gate, up, strict=True)
        ]
        return cls(pack_experts(pairs), PackedInt4Experts.quantize(down, group_size, **options))

    @property
    def gate_up(self) -> PackedInt4Experts:
        """The packed weights [E, 2 F, H], sharing their data with the module."""
        return PackedInt4Experts(self.gate_up_weight, *self._formats[0])

    @property
    def down(self) -> PackedInt4Experts:
        """The packed weights [E, H, F], sharing their data with the module."""
        return PackedInt4Experts(self.down_weight, *self._formats[1])

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Apply to each token the experts it is routed to, and add up what they give.

        Args:
            x: float32, float16 or bfloat16 [..., H].
            topk_ids: int64 or int32 [..., top_k], the experts of each token. Ids that are not
                experts are not looked for; what they give is unspecified.
            topk_weights: floating point [..., top_k].

        Returns:
            [..., H] in the dtype of x, added up in float32.

        Raises:
            TypeError: an argument has another dtype.
            ValueError: a shape or device does not fit.
            NotImplementedError: no kernel serves the device of x.
        """
        gate_up, down = self.gate_up, self.down
        check_shape(_NAME, "topk_ids", topk_ids, [*x.shape[:-1], *topk_ids.shape[-1:]])
        check_shape(_NAME, "topk_weights", topk_weights, topk_ids.shape)
        check_dtype(_NAME, "x", x, torch.float32, torch.float16, torch.bfloat16)
        check_shape(_NAME, "x", x, [*x.shape[:-1], gate_up.k])
        top_k = topk_ids.shape[-1]
        routing = sort_by_expert(topk_ids.reshape(-1, top_k), gate_up.experts)
        xq, xs = fp8_quantize(x.reshape(-1, gate_up.k))
        rows = xq.view(torch.uint8).index_select(0, routing.token).view(xq.dtype)
        scales = xs.index_select(0, routing.token)
        offsets = routing.expert_offsets
        hidden = int4fp8_gemm_grouped(
            rows, gate_up, scales, offsets, out_dtype=x.dtype, activation="silu_mul"
        )
        hq, hs = fp8_quantize(hidden)
        y = int4fp8_gemm_grouped(hq, down, hs, offsets, out_dtype=x.dtype)
        # Token by token in the order of its choices: no atomics, the same bits every time.
        chosen = y.index_select(0, routing.row.flatten()).view(-1, top_k, down.n)
        weights = topk_weights.reshape(-1, top_k, 1).float()
        return (chosen.float() * weights).sum(dim=1).to(x.dtype).view(x.shape)

    def get_extra_state(self) -> Tensor:
        """What the packed bytes mean; a tensor, so that safetensors can hold it."""
        fields = [int(field) for form in self._formats for field in form]
        return torch.tensor([layout.LAYOUT_VERSION, *fields])

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse packed weights whose bytes mean something else than this module takes them for."""
        expected = self.get_extra_state().tolist()
        if state.tolist() != expected:
            fields = "[layout_version, twice n, k, group_size, has_zero_point, has_channel_scale]"
            refuse(_NAME, f"{fields} = {expected}", state.tolist(), "state_dict")

    def extra_repr(self) -> str:
        """Shapes, as `print` shows them."""
        gate_up = self.gate_up
        return (
            f"experts={gate_up.experts}, hidden={gate_up.k}, features={gate_up.n // 2}, "
            f"group_size={gate_up.group_size}"
        )
