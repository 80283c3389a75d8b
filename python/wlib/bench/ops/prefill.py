"""`attention_prefill`: FP8 queries over an INT4 cache, over FP8 keys, and torch's SDPA."""

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from ...prefill import Int4KVCache, attention_prefill, quantize_kv_int4, quantize_q_fp8
from ...quantizer import fp8_quantize
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Where, Work, against, normal, spread
from ..rows import Row

SAMPLE_QUERIES, SAMPLE_HEADS = 8, 4


@dataclass(frozen=True)
class Attention:
    """One sequence: q [Q, H, D], k and v [KV, Hkv, D] bfloat16, aligned at their ends."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool

    def compare(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Accuracy:
        """Judge `out` [Q, H, D] on a sample; q, k, v are the arm's operands, dequantised."""
        reference = self._softmax(q, k, v)
        original = self._softmax(self.q, self.k, self.v)
        rows, heads = self._sample()
        return compare(out[rows][:, heads], reference, original)

    def _sample(self) -> tuple[Tensor, Tensor]:
        queries, heads = self.q.shape[:2]
        return spread(queries, SAMPLE_QUERIES, self.q), spread(heads, SAMPLE_HEADS, self.q)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention of the sample in float64, [rows, heads, D]."""
        rows, heads = self._sample()
        of_head = heads // (q.shape[1] // k.shape[1])
        keys, values = k[:, of_head].double(), v[:, of_head].double()
        scores = torch.einsum("qhd,khd->hqk", q[rows][:, heads].double(), keys)
        scores *= q.shape[2] ** -0.5
        if self.causal:
            last = rows + len(k) - len(q)
            hidden = torch.arange(len(k), device=k.device) > last[:, None]
            scores.masked_fill_(hidden, -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(2), values)


def _operands(sizes: Sizes, generator: torch.Generator) -> Attention:
    dim, q, kv = sizes["head_dim"], sizes["q"], sizes["kv"]
    k, v = (normal(generator, kv, sizes["kv_heads"], dim) for _ in range(2))
    return Attention(normal(generator, q, sizes["heads"], dim), k, v, bool(sizes["causal"]))


def _flops(sizes: Sizes) -> int:
    """Two products of D for each pair of query and key that is seen, counted once."""
    q, kv = sizes["q"], sizes["kv"]
    pairs = q * (kv - q) + q * (q + 1) // 2 if sizes["causal"] else q * kv
    return 4 * sizes["heads"] * sizes["head_dim"] * pairs


class Prefill(Arm[Attention]):
    """`wlib.attention_prefill` on quantised queries and a filled cache."""

    name = "wlib"
    dtype = "fp8 q, int4 kv"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Attention) -> Work:
        """Quantise the queries and fill a cache."""
        device = operands.q.device
        ends = torch.tensor([0, len(operands.k)], dtype=torch.int32, device=device)
        kv, table = quantize_kv_int4(operands.k, operands.v, ends)
        queries = self.queries(operands.q)
        starts = torch.tensor([0, len(operands.q)], dtype=torch.int32, device=device)

        def call(*cache: Tensor) -> Tensor:
            q8, q_scale = self.quantized(queries)
            out = attention_prefill(
                q8,
                Int4KVCache(*cache),
                q_scale=q_scale,
                cu_seqlens_q=starts,
                max_seqlen_q=len(operands.q),
                seqused_k=ends[1:],
                page_table=table,
                causal=operands.causal,
                return_lse=False,
            )
            assert isinstance(out, Tensor)
            return out

        def check(out: Tensor) -> Accuracy:
            q8, q_scale = self.quantized(queries)
            k, v = (t[: len(operands.k)] for t in kv.dequantize())
            return operands.compare(out, q8.float() * q_scale[..., None], k, v)

        return Work(call, (kv.k, kv.v, kv.k_scale, kv.v_scale), check, queries)

    def queries(self, q: Tensor) -> Tensors:
        """Convert the queries to what the timed call takes."""
        return quantize_q_fp8(q)

    def quantized(self, queries: Tensors) -> Tensors:
        """Return FP8 queries and their scales, inside the timed call."""
        return queries


class QuantizeAndPrefill(Prefill):
    """The quantiser of queries and then the attention, as a layer runs them."""

    name = "wlib+quantize"

    def queries(self, q: Tensor) -> Tensors:
        """Convert the queries to what the timed call takes."""
        return (q,)

    def quantized(self, queries: Tensors) -> Tensors:
        """Return FP8 queries and their scales, inside the timed call."""
        return quantize_q_fp8(queries[0])


class PrefillFp8(Arm[Attention]):
    """`wlib.attention_prefill` with every key in FP8 behind an empty cache."""

    name = "wlib_fp8_kv"
    dtype = "fp8 q, fp8 kv"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Attention) -> Work | None:
        """Quantise queries, keys and values to FP8, which are those of the same tokens."""
        if len(operands.q) != len(operands.k):
            return None
        (q8, q_scale), (k8, k_scale), (v8, v_scale) = (
            quantize_q_fp8(operands.q),
            fp8_quantize(operands.k),
            fp8_quantize(operands.v),
        )
        device, dim = operands.q.device, operands.q.shape[2]
        empty = Int4KVCache.allocate(1, operands.k.shape[1], dim, device)
        starts = torch.tensor([0, len(operands.q)], dtype=torch.int32, device=device)
        nothing = torch.zeros(1, dtype=torch.int32, device=device)

        def call(k8: Tensor, v8: Tensor, k_scale: Tensor, v_scale: Tensor) -> Tensor:
            out = attention_prefill(
                q8,
                empty,
                q_scale=q_scale,
                cu_seqlens_q=starts,
                max_seqlen_q=len(operands.q),
                seqused_k=nothing,
                page_table=nothing[None],
                k_new=k8,
                v_new=v8,
                k_new_scale=k_scale,
                v_new_scale=v_scale,
                causal=operands.causal,
                return_lse=False,
            )
            assert isinstance(out, Tensor)
            return out

        def check(out: Tensor) -> Accuracy:
            values = (
                codes.float() * scale[..., None]
                for codes, scale in ((q8, q_scale), (k8, k_scale), (v8, v_scale))
            )
            return operands.compare(out, *values)

        return Work(call, (k8, v8, k_scale, v_scale), check, (q8, q_scale))


class TorchSdpa(Arm[Attention]):
    """`scaled_dot_product_attention` in BF16, by the backend torch chooses."""

    name = "torch_sdpa"
    dtype = "bf16"
    backend: ClassVar[SDPBackend | None] = None

    def prepare(self, operands: Attention) -> Work:
        """Bring heads before tokens."""
        own = operands.q, operands.k, operands.v
        q, k, v = (t.transpose(0, 1)[None].contiguous() for t in own)
        return Work(
            lambda k, v: self.attend(operands, q, k, v),
            (k, v),
            lambda out: operands.compare(out, *own),
            (q,),
        )

    def attend(self, operands: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return out [Q, H, D]."""
        lengths = q.shape[2], k.shape[2]
        square = lengths[0] == lengths[1]
        mask = causal_lower_right(*lengths) if operands.causal and not square else None
        backend = sdpa_kernel(self.backend) if self.backend else contextlib.nullcontext()
        with backend:
            out = torch.nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=operands.causal and square,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return out[0].transpose(0, 1)


class TorchSdpaCudnn(TorchSdpa):
    """The same, forced to cuDNN."""

    name = "torch_sdpa_cudnn"
    backend = SDPBackend.CUDNN_ATTENTION

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return "cuDNN's attention needs a GPU" if device.type == "cpu" else None


class DequantizeAndSdpa(TorchSdpa):
    """Dequantises the INT4 cache to BF16 and calls SDPA: what one does without the kernel."""

    name = "torch_dequantize_sdpa"
    dtype = "bf16 q, int4 kv"

    def prepare(self, operands: Attention) -> Work:
        """Fill a cache."""
        ends = torch.tensor([0, len(operands.k)], dtype=torch.int32, device=operands.q.device)
        kv, _ = quantize_kv_int4(operands.k, operands.v, ends)
        q = operands.q.transpose(0, 1)[None].contiguous()

        def call(*cache: Tensor) -> Tensor:
            tokens = (t[: len(operands.k)].bfloat16() for t in Int4KVCache(*cache).dequantize())
            k, v = (t.transpose(0, 1)[None] for t in tokens)
            return self.attend(operands, q, k, v)

        def check(out: Tensor) -> Accuracy:
            k, v = (t[: len(operands.k)] for t in kv.dequantize())
            return operands.compare(out, operands.q, k, v)

        return Work(call, (kv.k, kv.v, kv.k_scale, kv.v_scale), check, (q,))


def _targets() -> tuple[Target, ...]:
    cudnn, dequantize = against("torch_sdpa_cudnn"), against("torch_dequantize_sdpa")

    def square(dim: int, causal: int) -> Where:
        return lambda s: (
            s["q"] == s["kv"] >= 8192 and s["head_dim"] == dim and s["causal"] == causal
        )

    def chunk(queries: int) -> Where:
        return lambda s: s["q"] == queries and s["kv"] >= 65536

    def own(row: Row) -> float | None:
        return row.speedup.get("wlib_fp8_kv")

    return (
        Target("x cuDNN BF16, d 128 causal, from 8k", 1.20, 1.35, cudnn, square(128, 1)),
        Target("x cuDNN BF16, d 128 full, from 8k", 1.25, 1.55, cudnn, square(128, 0)),
        Target("x cuDNN BF16, d 64 causal, from 8k", 1.25, 1.75, cudnn, square(64, 1)),
        Target("x cuDNN BF16, d 256 causal, from 8k", 1.25, 1.8, cudnn, square(256, 1)),
        Target("x dequantise and SDPA, 1024 over 64k", 1.25, 1.6, dequantize, chunk(1024)),
        Target("x dequantise and SDPA, 256 over 64k", 1.4, 2.0, dequantize, chunk(256)),
        Target("x our own FP8 keys and values", 0.90, 1.0, own),
    )


OP = Op(
    name="prefill",
    sizes=("heads", "kv_heads", "head_dim", "q", "kv", "causal"),
    operands=_operands,
    flops=_flops,
    arms=(
        Prefill,
        QuantizeAndPrefill,
        PrefillFp8,
        TorchSdpa,
        TorchSdpaCudnn,
        DequantizeAndSdpa,
    ),
    targets=_targets(),
)
