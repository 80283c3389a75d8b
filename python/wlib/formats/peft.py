"""Adapters that PEFT saved: `adapter_config.json` beside `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re

from .config import Config
from .delta import EMBEDDING, LOHA, LOKR, LORA, Delta, Layout, LoraDelta
from .layer import LayerTensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {"LORA": (LORA, EMBEDDING), "LOHA": (LOHA,), "LOKR": (LOKR,)}
# What says how the adapter was trained or where it was put, but not what its tensors mean.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "decompose_both", "decompose_factor"),
    *("ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "module_dropout"),
    *("peft_version", "qalora_group_size", "rank_dropout", "rank_dropout_scale", "revision"),
    *("target_modules", "task_type", "use_effective_conv2d"),
}
_READ = {"alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "init_weights"}
_READ |= {"lora_alpha", "alpha", "peft_type", "r", "rank_pattern", "use_khatri_rao", "use_rslora"}


class Peft:
    """How one adapter's tensors are to be understood.

    Args:
        config: the object in adapter_config.json.

    Raises:
        ValueError: the config is of another kind of adapter, or says something of it that no
            reader here takes into account; the message names the field.
    """

    def __init__(self, config: Config) -> None:
        self.kind: str = config.one_of("peft_type", *KINDS)
        for key, value in config.values.items():
            if key not in _HARMLESS | _READ and value not in (None, False, [], {}):
                config.refuse("nothing, since it changes what a layer computes",
                              json.dumps(value), key)  # fmt: skip
        config.one_of("bias", "none", default="none")
        # Other starts, such as "pissa", train against a base that is not the model's own.
        starts = (True, False, "gaussian", "eva", "orthogonal", "lycoris")
        config.one_of("init_lora_weights", *starts, default=True)
        config.one_of("init_weights", *starts, default=True)
        config.one_of("use_khatri_rao", False, "auto", default=False)
        self._rslora = config.one_of("use_rslora", True, False, None, default=False)
        self._transposed = bool(config.one_of("fan_in_fan_out", True, False, None, default=False))
        alpha = "lora_alpha" if self.kind == "LORA" else "alpha"
        self._rank = _Pattern(config, "r", "rank_pattern")
        self._alpha = _Pattern(config, alpha, "alpha_pattern")
        self._config = config

    def read(self, layout: Layout, tensors: LayerTensors) -> Delta:
        """The delta of one module."""
        if layout not in KINDS[self.kind]:
            tensors.refuse(f"tensors of {self.kind}, as {CONFIG} says", layout.name, "peft_type")
        rank, alpha = self._rank(tensors.layer), self._alpha(tensors.layer)
        if rank < 1:
            self._config.refuse(f"a rank for {tensors.layer}", rank, "r")
        scale = alpha / (math.sqrt(rank) if self._rslora else rank)

        def scale_of(found: int | None) -> float:
            if found not in (None, rank):
                tensors.refuse(f"tensors of rank {rank:g}, as {CONFIG} says", found, "r")
            return scale

        delta = layout.read(tensors, scale_of)
        if self._transposed and isinstance(delta, LoraDelta) and layout is LORA:
            return delta.transpose()
        return delta


class _Pattern:
    """A number for each module: of the first pattern that fits the end of its name, or one."""

    def __init__(self, config: Config, key: str, patterns: str) -> None:
        self._default = config.number(key)
        self._numbers: list[tuple[re.Pattern[str], float]] = []
        if config.values.get(patterns) in (None, {}):
            return
        section = config.section(patterns)
        for pattern in section.values:
            self._numbers.append((_compile(section, pattern), section.number(pattern)))

    def __call__(self, name: str) -> float:
        found = (number for pattern, number in self._numbers if pattern.match(name))
        return next(found, self._default)


def _compile(config: Config, pattern: str) -> re.Pattern[str]:
    # A repeated group can take exponential time to fail: a file must not hang its reader.
    if re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 2:
        config.refuse("a pattern with at most two repeats, of no group", pattern, pattern)
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        config.refuse("a regular expression", error, pattern)
