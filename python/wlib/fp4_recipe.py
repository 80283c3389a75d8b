"""Recipes of FP4 training: what is quantised how in the three matmuls of a linear layer."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

from .errors import refuse

_NAME = "wlib.FP4Recipe"
_WORDS = {
    "format": ("mxfp4", "nvfp4"),
    "grad_rounding": ("nearest", "stochastic", "ms_eden"),
    "forward": ("fp4", "fp8", "bf16"),
    "dgrad": ("fp4", "fp8", "bf16"),
    "wgrad": ("fp4", "fp8", "bf16"),
}
_RULES = {
    "mxfp4": ("even", "floor", "quest", "quest_floor", "three_quarters"),
    "nvfp4": ("amax", "four_over_six"),
}
_SIZES = (0, 16, 32, 64, 128)


@dataclass(frozen=True)
class FP4Recipe:
    """How `wlib.fp4_linear` computes y = x W^T, dX = dY W and dW = dY^T X.

    The backward pass quantises what the forward pass multiplied: W_q and X_q, transposed, rotated
    by fresh signs along the new contraction axis and quantised again. Named recipes: `named`.

    Attributes:
        name: for people.
        format: "mxfp4" or "nvfp4".
        scale_rule: of x and W in the forward pass, see docs/numerics.md.
        hadamard: size of the fixed rotation of x and W along K, 0 for none.
        mask: whether gradients of values that clip are dropped (the trust estimator of QuEST).
        square_weight: nvfp4: W in blocks of 16 x 16, the same values in both passes.
        grad_scale_rule, grad_rounding: of the operands of the backward pass.
        round_all: whether the roundings of grad_rounding apply to W and X as well as to dY; else
            these are rounded to nearest.
        dgrad_hadamard, wgrad_hadamard: sizes of the rotations along N and along the tokens.
        fixed_signs: the same signs in every step instead of fresh ones.
        alignment: factor of each operand of the backward pass that undoes what rounding to nearest
            takes off in the mean.
        requantize_x: False: dW sees x itself, quantised transposed in the forward pass, instead of
            X_q.
        forward, dgrad, wgrad: which matmul runs in "fp4", in "fp8" (E4M3, a scale per row) or in
            "bf16". If the forward pass is not in FP4, what it multiplied is saved as it is.
        skip: names of layers that `wlib.nn.replace_linear` leaves alone, as glob patterns.
        skip_last: how many layers at the end of a model it leaves alone.

    Raises:
        ValueError: a word is unknown, or a combination does not exist.
    """

    name: str = "custom"
    format: str = "mxfp4"
    scale_rule: str = "even"
    hadamard: int = 32
    mask: bool = False
    square_weight: bool = False
    grad_scale_rule: str = "even"
    grad_rounding: str = "nearest"
    round_all: bool = True
    dgrad_hadamard: int = 128
    wgrad_hadamard: int = 128
    fixed_signs: bool = False
    alignment: float = 1.00976
    requantize_x: bool = True
    forward: str = "fp4"
    dgrad: str = "fp4"
    wgrad: str = "fp4"
    skip: tuple[str, ...] = ()
    skip_last: int = 0

    def __post_init__(self) -> None:
        for field, words in _WORDS.items():
            self._expect(field, words)
        for field in ("scale_rule", "grad_scale_rule"):
            self._expect(field, _RULES[self.format])
        for field in ("hadamard", "dgrad_hadamard", "wgrad_hadamard"):
            self._expect(field, _SIZES)
        rounding, nv = self.grad_rounding, self.format == "nvfp4"
        if rounding == "ms_eden" and not (nv and self.grad_scale_rule == "amax"):
            refuse(_NAME, "'amax' of nvfp4 for 'ms_eden'", self.grad_scale_rule, "grad_rounding")
        if rounding == "stochastic" and self.grad_scale_rule == "four_over_six":
            refuse(_NAME, "'amax' for 'stochastic'", "'four_over_six'", "grad_scale_rule")
        if self.square_weight and not (nv and self.grad_scale_rule == "amax"):
            refuse(
                _NAME, "'amax' of nvfp4 for square blocks", self.grad_scale_rule, "square_weight"
            )
        if self.square_weight and (self.hadamard or self.dgrad_hadamard or self.round_all):
            refuse(_NAME, "no rotation and no rounding of W", "square blocks", "square_weight")
        if self.mask and not self.requantize_x:
            refuse(_NAME, "requantize_x with a mask", False, "requantize_x")
        if not self.requantize_x and (self.hadamard or self.forward != "fp4"):
            refuse(_NAME, "no fixed rotation and forward 'fp4'", "another", "requantize_x")
        object.__setattr__(self, "text", json.dumps(dataclasses.asdict(self), sort_keys=True))

    def _expect(self, field: str, words: tuple[Any, ...]) -> None:
        value = getattr(self, field)
        if value not in words:
            refuse(_NAME, f"{field} to be one of {', '.join(map(repr, words))}", repr(value), field)

    @classmethod
    def named(cls, name: str) -> FP4Recipe:
        """A published recipe, or `wlib`.

        - "wlib": MXFP4 EVEN; fixed rotation of 32 forward, 128 with fresh signs backward; aligned
          rounding to nearest.
        - "quartet": arXiv 2505.14669, version 4: QuEST's scale and mask forward; 3/4 of the value,
          aligned rounding to nearest, rotation of 32 backward.
        - "quartet_v1": its released code: scales rounded down, stochastic rounding.
        - "quartet2": arXiv 2601.22813: NVFP4, Four over Six forward, MS-EDEN backward.
        - "nvidia": arXiv 2509.25149: NVFP4, W in squares, dY rounded stochastically, x and dY
          rotated by 16 for dW with fixed signs.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in RECIPES:
            known = ", ".join(map(repr, RECIPES))
            refuse(_NAME, f"name to be one of {known}", repr(name), "name")
        return RECIPES[name]

    @property
    def is_random(self) -> bool:
        """Whether a call draws signs or roundings."""
        gemms = (self.dgrad, self.dgrad_hadamard), (self.wgrad, self.wgrad_hadamard)
        random = self.grad_rounding != "nearest"
        return any(gemm == "fp4" and (size > 0 or random) for gemm, size in gemms)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        FP4Recipe("wlib"),
        FP4Recipe(
            "quartet",
            scale_rule="quest",
            mask=True,
            grad_scale_rule="three_quarters",
            dgrad_hadamard=32,
            wgrad_hadamard=32,
            alignment=1.009276,
        ),
        FP4Recipe(
            "quartet_v1",
            scale_rule="quest_floor",
            mask=True,
            grad_scale_rule="three_quarters",
            grad_rounding="stochastic",
            dgrad_hadamard=32,
            wgrad_hadamard=32,
            alignment=1.0,
        ),
        FP4Recipe(
            "quartet2",
            format="nvfp4",
            scale_rule="four_over_six",
            hadamard=0,
            grad_scale_rule="amax",
            grad_rounding="ms_eden",
            alignment=1.0,
        ),
        FP4Recipe(
            "nvidia",
            format="nvfp4",
            scale_rule="amax",
            hadamard=0,
            square_weight=True,
            grad_scale_rule="amax",
            grad_rounding="stochastic",
            round_all=False,
            dgrad_hadamard=0,
            wgrad_hadamard=16,
            fixed_signs=True,
            alignment=1.0,
            requantize_x=False,
        ),
    )
}


def as_recipe(recipe: str | FP4Recipe) -> FP4Recipe:
    """The recipe of this name, or the recipe itself."""
    return FP4Recipe.named(recipe) if isinstance(recipe, str) else recipe


@functools.lru_cache(maxsize=64)
def from_text(text: str) -> FP4Recipe:
    """The recipe whose attribute `text` this is: how it travels through ops."""
    fields = json.loads(text)
    return FP4Recipe(**{**fields, "skip": tuple(fields["skip"])})
