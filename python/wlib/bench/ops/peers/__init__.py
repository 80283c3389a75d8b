"""Other libraries' ways to compute an op: arms that are there if their package is installed.

What was verified of each, and how, is in `bench/README.md`.
"""

from dataclasses import replace
from typing import Any

from ...op import Arm, Op, Target, against
from .attention import CudnnFp8, FlashinferFp8
from .fbgemm import Fbgemm, FbgemmGrouped
from .humming import Humming
from .lycoris import LycorisLoha, LycorisLora
from .training import FpQuant, TorchaoFloat8

ARMS: dict[str, tuple[type[Arm[Any]], ...]] = {
    "int4fp8": (Humming, Fbgemm),
    "int4fp8_grouped": (FbgemmGrouped,),
    "fp4_quantize": (FpQuant,),
    "fp4_linear": (TorchaoFloat8,),
    "lora_merge": (LycorisLora,),
    "loha_merge": (LycorisLoha,),
    "prefill": (CudnnFp8, FlashinferFp8),
}

TARGETS: dict[str, tuple[Target, ...]] = {
    "int4fp8": (
        Target("x humming", 1.0, 1.2, against("humming")),
        Target("x fbgemm", 1.0, 1.25, against("fbgemm")),
    ),
    "fp4_quantize": (Target("x fp-quant", 2.0, 4.0, against("fp_quant")),),
    "fp4_linear": (Target("x torchao FP8 row-wise", 0.9, 1.05, against("torchao")),),
    "lora_merge": (Target("x LyCORIS", 1.0, 1.15, against("lycoris")),),
    "loha_merge": (Target("x LyCORIS", 1.0, 1.15, against("lycoris")),),
    "prefill": (
        Target("x cuDNN FP8", 0.8, 1.0, against("cudnn_fp8")),
        Target("x FlashInfer FP8", 1.0, 1.15, against("flashinfer")),
    ),
}


def with_peers(op: Op[Any]) -> Op[Any]:
    """Return `op` with the arms of other libraries behind its own, and what is asked of them."""
    arms, targets = ARMS.get(op.name, ()), TARGETS.get(op.name, ())
    return replace(op, arms=(*op.arms, *arms), targets=(*op.targets, *targets))
