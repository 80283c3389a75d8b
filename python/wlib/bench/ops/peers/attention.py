"""FP8 attention of cuDNN and of FlashInfer: one scale per tensor, one per head."""

from typing import Any

import torch
from torch import Tensor

from ...accuracy import Accuracy
from ...op import Arm, Tensors, Work
from ..matmul import E4M3_MAX
from ..prefill import Attention
from .peer import Peer

P_SCALE = 256.0  # of probabilities, which are at most 1: most of them are normal numbers of E4M3


def quantize(values: Tensor, dims: tuple[int, ...]) -> Tensors:
    """Return E4M3 codes of `values` and their float32 scale, one over all of `dims`."""
    scale = values.abs().amax(dims, keepdim=True).float() / E4M3_MAX
    return (values / scale).to(torch.float8_e4m3fn), scale


class CudnnFp8(Peer, Arm[Attention]):
    """cuDNN's FP8 attention; on Hopper its output is FP8, too, half the bytes of the others'."""

    name = "cudnn_fp8"
    dtype = "fp8 q, k, v and out"
    package = "nvidia-cudnn-frontend"
    module = "cudnn"
    least_sqnr_db = 20.0  # probabilities and outputs are rounded to E4M3, 31 dB each

    def prepare(self, operands: Attention) -> Work | None:
        """Build a plan; None for chunks with a causal mask, which would be aligned at the start."""
        import cudnn

        if operands.causal and len(operands.q) != len(operands.k):
            return None
        (q, q_scale), (k, k_scale), (v, v_scale) = (
            quantize(t, (0, 1, 2)) for t in (operands.q, operands.k, operands.v)
        )
        # An output is a mean of values, so this keeps it within E4M3.
        out_scale = E4M3_MAX / (v.float().abs().amax() * v_scale)
        constants = (
            q_scale,
            k_scale,
            v_scale,
            torch.full_like(q_scale, 1 / P_SCALE),
            torch.full_like(q_scale, P_SCALE),
            out_scale,
        )
        handle = cudnn.create_handle()
        graph, names, out_name = self._graph(cudnn, handle, (q, k, v), operands.causal)
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)

        def call(k: Tensor, v: Tensor) -> Tensor:
            out = torch.empty_like(q)
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
            held = dict(zip(names, (q, k, v, *constants), strict=True))
            graph.execute(held | {out_name: out}, workspace, handle=handle)
            return out

        def check(out: Tensor) -> Accuracy:
            dequantized = (
                t.float() * scale for t, scale in ((q, q_scale), (k, k_scale), (v, v_scale))
            )
            return operands.compare(out.float() / out_scale, *dequantized)

        return Work(call, (k, v), check, (q, *constants))

    @staticmethod
    def _graph(cudnn: Any, handle: Any, qkv: Tensors, causal: bool) -> tuple[Any, list[Any], Any]:
        """The graph, its inputs in the order of `sdpa_fp8`, and its output."""
        fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
        graph = cudnn.pygraph(
            io_data_type=fp8,
            intermediate_data_type=fp32,
            compute_data_type=fp32,
            handle=handle,
        )

        def heads_first(t: Tensor) -> dict[str, list[int]]:
            view = t.transpose(0, 1)[None]
            return {"dim": list(view.shape), "stride": list(view.stride())}

        one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
        inputs = [graph.tensor(**heads_first(t), data_type=fp8) for t in qkv]
        inputs += [graph.tensor(**one, data_type=fp32) for _ in range(6)]
        out, _, p_amax, out_amax = graph.sdpa_fp8(
            *inputs,
            attn_scale=qkv[0].shape[2] ** -0.5,
            use_causal_mask=causal,
            generate_stats=False,
        )
        shape = heads_first(qkv[0])
        out.set_output(True).set_dim(shape["dim"]).set_stride(shape["stride"]).set_data_type(fp8)
        for amax in (p_amax, out_amax):
            amax.set_output(False).set_dim(one["dim"]).set_stride(one["stride"])
        return graph, inputs, out


class FlashinferFp8(Peer, Arm[Attention]):
    """FlashInfer's kernels for Hopper on FP8 queries, keys and values; compiled when called."""

    name = "flashinfer_fp8"
    dtype = "fp8 q, fp8 kv"
    package = "flashinfer-python"
    module = "flashinfer"
    least_sqnr_db = 20.0  # probabilities are rounded to E4M3

    def prepare(self, operands: Attention) -> Work:
        """Quantise with a scale per head."""
        from flashinfer.prefill import single_prefill_with_kv_cache

        (q, q_scale), (k, k_scale), (v, v_scale) = (
            quantize(t, (0, 2)) for t in (operands.q, operands.k, operands.v)
        )

        def call(k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = single_prefill_with_kv_cache(
                q,
                k,
                v,
                scale_q=q_scale.flatten(),
                scale_k=k_scale.flatten(),
                scale_v=v_scale.flatten(),
                o_dtype=torch.bfloat16,
                causal=operands.causal,
                backend="fa3",
            )
            return out

        def check(out: Tensor) -> Accuracy:
            dequantized = (
                t.float() * scale for t, scale in ((q, q_scale), (k, k_scale), (v, v_scale))
            )
            return operands.compare(out, *dequantized)

        return Work(call, (k, v), check, (q, q_scale, k_scale, v_scale))
