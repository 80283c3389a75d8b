"""`append_kv_int4`: keys and values of new tokens into the INT4 cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...prefill import BLOCK_SIZE, Int4KVCache
from ..accuracy import Accuracy, sqnr_db
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Work, copy_fraction, normal


@dataclass(frozen=True)
class Tokens:
    """k, v [M, Hkv, D] bfloat16 for the slots of a cache with exactly as many tokens."""

    k: Tensor
    v: Tensor
    slots: Tensor
    blocks: int


def _operands(sizes: Sizes, generator: torch.Generator) -> Tokens:
    m, heads, dim = sizes["m"], sizes["kv_heads"], sizes["head_dim"]
    k, v = (normal(generator, m, heads, dim) for _ in range(2))
    slots = torch.arange(m, device=generator.device)
    return Tokens(k, v, slots, -(-m // BLOCK_SIZE))


class Append(Arm[Tokens]):
    """`Int4KVCache.append` into blocks that are filled in order."""

    name = "wlib"
    dtype = "bf16 -> int4"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Tokens) -> Work:
        """Allocate the cache."""
        _, heads, dim = operands.k.shape
        kv = Int4KVCache.allocate(operands.blocks, heads, dim, operands.k.device)

        def call(k: Tensor, v: Tensor) -> Tensors:
            kv.append(k, v, operands.slots)
            return kv.k, kv.v, kv.k_scale, kv.v_scale

        def check(_: Tensors) -> Accuracy:
            k, _v = kv.dequantize()
            return Accuracy(format_sqnr_db=sqnr_db(k[: len(operands.k)], operands.k.double()))

        return Work(call, (operands.k, operands.v), check, (operands.slots,))


class TorchBf16Cache(Arm[Tokens]):
    """`index_copy_` into a cache in BF16: what there is to do without quantising."""

    name = "torch_bf16_cache"
    dtype = "bf16 -> bf16"

    def prepare(self, operands: Tokens) -> Work:
        """Allocate the cache."""
        shape = (operands.blocks * BLOCK_SIZE, *operands.k.shape[1:])
        cache = [operands.k.new_zeros(shape) for _ in range(2)]

        def call(k: Tensor, v: Tensor) -> Tensors:
            for target, source in zip(cache, (k, v), strict=True):
                target.index_copy_(0, operands.slots, source)
            return cache[0], cache[1]

        def check(result: Tensors) -> Accuracy:
            return Accuracy(
                format_sqnr_db=sqnr_db(result[0][: len(operands.k)], operands.k.double())
            )

        return Work(call, (operands.k, operands.v), check, (operands.slots,))


OP = Op(
    name="kv_append",
    sizes=("m", "kv_heads", "head_dim"),
    operands=_operands,
    flops=lambda sizes: 0,
    arms=(Append, TorchBf16Cache),
    targets=(
        Target(
            "of copy bandwidth, from 64 Ki tokens",
            0.65,
            0.80,
            copy_fraction,
            lambda sizes: sizes["m"] >= 65536,
        ),
    ),
)
