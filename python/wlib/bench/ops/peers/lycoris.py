"""LyCORIS: merges of adapters by its fused kernels, a launch per layer."""

from torch import Tensor

from ..rebuild import SCALE, Adapters, TorchLora
from .peer import Peer


class LycorisLora(Peer, TorchLora):
    """`locon_diff_weight` with the sum with the base weight in its epilogue."""

    name = "lycoris"
    package = "lycoris-lora"
    module = "lycoris"
    least_sqnr_db = 40.0

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> Tensor:
        """Return the merged weight of layer i."""
        from lycoris.kernels.autograd.locon import locon_diff_weight

        merged: Tensor = locon_diff_weight(operands.a[i], operands.b[i], gamma=SCALE, base=w0)
        return merged


class LycorisLoha(LycorisLora):
    """`loha_diff_weight`, the same for LoHa."""

    hadamard = True

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> Tensor:
        """Return the merged weight of layer i."""
        from lycoris.kernels.autograd.loha import loha_diff_weight

        first, second = (operands.a[i], operands.b[i]), (operands.a2[i], operands.b2[i])
        merged: Tensor = loha_diff_weight(*first, *second, gamma=SCALE, base=w0)
        return merged
