"""Sharing the attention weights of a pretrained model, without training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..atoms import atoms_from_layers
from ..errors import refuse
from .atoms import AtomDictionary, AtomLinear

_NAME = "wlib.nn.share_attention"


@dataclass(frozen=True)
class SharedGroup:
    """What became of the layers that share one dictionary.

    Attributes:
        projection: the pattern they were found by.
        names: the layers.
        num_atoms: S.
        kept_energy: share of squared weights that the atoms hold, 0 to 1.
        weight_errors: per layer, squared error over squared weight, residual included.
        output_errors: the same of the layer's outputs on the calibration batches, or None.
        bytes_before, bytes_after: of the weights; of atoms, coefficients and residuals.
    """

    projection: str
    names: tuple[str, ...]
    num_atoms: int
    kept_energy: float
    weight_errors: tuple[float, ...]
    output_errors: tuple[float, ...] | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ShareReport:
    """The groups in the order they were converted; prints as a table."""

    groups: tuple[SharedGroup, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of all converted weights."""
        return sum(group.bytes_before for group in self.groups)

    @property
    def bytes_after(self) -> int:
        """Bytes of what replaced them."""
        return sum(group.bytes_after for group in self.groups)

    def __str__(self) -> str:
        names = [name for group in self.groups for name in group.names]
        width = max(len("layer"), *map(len, names)) if names else 5
        head = f"{'layer':{width}}  atoms  kept energy  weight error  output error"
        lines = [head, "-" * len(head)]
        for group in self.groups:
            outputs: Sequence[float | None] = group.output_errors or [None] * len(group.names)
            rows = zip(group.names, group.weight_errors, outputs, strict=True)
            for name, error, output in rows:
                seen = "-" if output is None else f"{output:.4f}"
                lines.append(
                    f"{name:{width}}  {group.num_atoms:5}  {group.kept_energy:11.4f}"
                    f"  {error:12.4f}  {seen:>12}"
                )
        lines.append(f"{self.bytes_before:,} -> {self.bytes_after:,} bytes")
        return "\n".join(lines)


def share_attention(
    model: nn.Module,
    projections: Sequence[str],
    num_atoms: int | float,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    num_groups: int | None = None,
    blocks: str | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    calibration: Iterable[Any] | None = None,
    residual_rank: int = 0,
) -> ShareReport:
    """Replace projections of a pretrained model by atoms their layers share, in place.

    MASA's conversion without training (arXiv 2508.04581): the layers of a group give atoms and
    coefficients by Matrix PCA, what is left of each weight a product of low rank. With calibration
    batches that product is the best for the layer's outputs: the rest is multiplied by the Cholesky
    factor of the inputs' autocorrelation before it is cut. The inputs are those of the original
    model. The dictionaries are registered as `model.atom_dictionaries`; call the model within
    `cached_weights`, or make plain layers of it again by `merge_atoms`.

    Args:
        model: its layers must be `nn.Linear` and not shared between names.
        projections: a glob pattern per kind of projection, such as "blocks.*.query"; what fits, in
            the model's order, is layer 0, 1, ... of that kind.
        num_atoms: atoms per group; a float in (0, 1] is a share of the group's layers, 1 / 3 being
            MASA's 66.7 %. Groups with fewer layers get as many atoms as layers.
        groups: lists of layers, each layer in one of them; None for one group, or for `num_groups`
            runs of consecutive blocks whose outputs are similar.
        num_groups: how many runs; cut where neighbouring outputs are farthest apart: by the KL
            divergence of what `head` makes of them where it is given, by 1 - cosine of the hidden
            states otherwise. Needs `blocks` and `calibration`.
        blocks: pattern of the modules whose outputs are compared, as many as layers.
        head: from hidden states to logits.
        calibration: batches that the model is called with: a tensor, a sequence of arguments or a
            mapping of keywords.
        residual_rank: rank of the product per layer, 0 for none.

    Returns:
        A report with kept energy, errors and bytes.

    Raises:
        ValueError: a pattern finds no layer, layers of one kind differ in shape, or groups and
            numbers do not fit them.
    """
    kinds = [_find(model, pattern) for pattern in projections]
    batches = None if calibration is None else list(calibration)
    if num_groups is not None:
        groups = _similar(model, blocks, batches, num_groups, head)
    for pattern, names in zip(projections, kinds, strict=True):
        _check_groups(pattern, len(names), groups)
    _check_numbers(num_atoms, residual_rank)
    moments = (
        {}
        if batches is None
        else _moments(model, [name for kind in kinds for name in kind], batches)
    )
    dictionaries, done, layers = nn.ModuleDict(), [], {}
    for pattern, names in zip(projections, kinds, strict=True):
        for i, group in enumerate(groups or [range(len(names))]):
            own = [names[layer] for layer in group]
            count = num_atoms if isinstance(num_atoms, int) else round(num_atoms * len(own))
            count = min(len(own), max(1, count))
            dictionary, made = _convert(model, pattern, own, count, residual_rank, moments)
            key = pattern.replace(".", "_").replace("*", "") + f"_{i}"
            dictionaries[key] = dictionary
            done.append(made)
            for layer, name in enumerate(own):
                layers[name] = _layer(dictionary, layer, model.get_submodule(name))
    model.atom_dictionaries = dictionaries
    for name, module in layers.items():
        model.set_submodule(name, module)
    return ShareReport(tuple(done))


def _find(model: nn.Module, pattern: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if fnmatchcase(name, pattern)]
    linears = [name for name in names if type(model.get_submodule(name)) is nn.Linear]
    if not linears:
        refuse(_NAME, "a pattern that fits an nn.Linear", repr(pattern), "projections")
    shapes = {tuple(model.get_submodule(name).weight.shape) for name in linears}  # type: ignore[arg-type]
    if len(shapes) > 1:
        refuse(_NAME, f"layers of one shape for {pattern!r}", sorted(shapes), "projections")
    return linears


def _check_groups(pattern: str, count: int, groups: Sequence[Sequence[int]] | None) -> None:
    listed = sorted(layer for group in groups or [range(count)] for layer in group)
    if listed != list(range(count)):
        expected = f"each of the {count} layers of {pattern!r} in one group"
        refuse(_NAME, expected, groups, "groups")


def _check_numbers(num_atoms: int | float, residual_rank: int) -> None:
    if num_atoms <= 0 or (isinstance(num_atoms, float) and num_atoms > 1):
        refuse(_NAME, "a number of atoms or a share in (0, 1]", num_atoms, "num_atoms")
    if residual_rank < 0:
        refuse(_NAME, "residual_rank of at least 0", residual_rank, "residual_rank")


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        model(*batch)


@torch.no_grad()
def _observe(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Any],
    see: Callable[[str, Tensor, Any], None],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Call `see` with the name, first input and output of modules, `after` after each batch."""
    hooks = []
    for name in names:

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            see(name, args[0], output)

        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    training = model.training
    try:
        model.eval()
        for batch in batches:
            _call(model, batch)
            after()
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()


def _moments(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> dict[str, Tensor]:
    """X^T X / rows of the inputs of each layer, float64 [K, K]."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def see(name: str, x: Tensor, _: Any) -> None:
        x = x.detach().flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + x.T @ x
        rows[name] = rows.get(name, 0) + len(x)

    _observe(model, names, batches, see)
    for name in names:
        if not rows.get(name):
            refuse(_NAME, f"batches that reach {name}", "none", "calibration")
    return {name: total / rows[name] for name, total in sums.items()}


def _similar(
    model: nn.Module,
    blocks: str | None,
    batches: Sequence[Any] | None,
    num_groups: int,
    head: Callable[[Tensor], Tensor] | None,
) -> list[list[int]]:
    """Runs of blocks, cut at the largest distances between the outputs of neighbours."""
    if blocks is None or not batches:
        missing = "blocks" if blocks is None else "calibration"
        refuse(_NAME, f"{missing} to form num_groups", "none", missing)
    names = [name for name, _ in model.named_modules() if fnmatchcase(name, blocks)]
    if not 1 <= num_groups <= len(names):
        refuse(_NAME, f"num_groups from 1 to {len(names)}", num_groups, "num_groups")
    seen: dict[str, Tensor] = {}
    distance = torch.zeros(len(names) - 1, dtype=torch.float64)

    def see(name: str, _: Tensor, output: Any) -> None:
        seen[name] = output if isinstance(output, Tensor) else output[0]

    def compare() -> None:
        for i in range(len(names) - 1):
            distance[i] += _distance(seen[names[i]], seen[names[i + 1]], head).cpu()

    _observe(model, names, batches, see, compare)
    cuts = sorted(distance.topk(num_groups - 1).indices.tolist())
    ends = [0, *(cut + 1 for cut in cuts), len(names)]
    return [list(range(*pair)) for pair in itertools.pairwise(ends)]


def _distance(a: Tensor, b: Tensor, head: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Mean over tokens of the KL divergence of the predictions, or of 1 - cosine."""
    if head is None:
        return 1 - F.cosine_similarity(a.double(), b.double(), dim=-1).mean()
    p, q = (head(x).double().log_softmax(-1) for x in (a, b))
    return (p.exp() * (p - q)).sum(-1).mean()


@torch.no_grad()
def _convert(
    model: nn.Module,
    pattern: str,
    names: Sequence[str],
    num_atoms: int,
    rank: int,
    moments: Mapping[str, Tensor],
) -> tuple[AtomDictionary, SharedGroup]:
    weights = [model.get_submodule(name).weight.detach() for name in names]  # type: ignore[operator]
    found = atoms_from_layers(weights, num_atoms)
    n, k = weights[0].shape
    dictionary = AtomDictionary(
        len(names),
        n,
        k,
        num_atoms,
        coefficients="free",
        residual_rank=rank,
        device=weights[0].device,
        dtype=weights[0].dtype,
    )
    # Coefficients stay in float32: those of bfloat16 would cost as much as the atoms' rounding.
    dictionary.coef = nn.Parameter(found.coef)
    dictionary.atoms.copy_(found.atoms)
    if rank and dictionary.residual_a is not None and dictionary.residual_b is not None:
        dictionary.residual_a.zero_()
        rest = torch.stack(weights).double() - dictionary.weights().double()
        for i, name in enumerate(names):
            a, b = _low_rank(rest[i], rank, moments.get(name))
            dictionary.residual_a[i], dictionary.residual_b[i] = a, b
    rebuilt = dictionary.weights().double()
    errors, outputs = [], []
    for name, w, w_hat in zip(names, weights, rebuilt, strict=True):
        rest = w.double() - w_hat
        errors.append(float(rest.square().sum() / w.double().square().sum()))
        if name in moments:
            lost, all_of_it = (((m @ moments[name]) * m).sum() for m in (rest, w.double()))
            outputs.append(float(lost / all_of_it))
    after = sum(p.nbytes for p in dictionary.parameters())
    before = sum(w.nbytes for w in weights)
    measured = tuple(outputs) if outputs else None
    group = SharedGroup(
        pattern, tuple(names), num_atoms, found.kept_energy, tuple(errors), measured, before, after
    )
    return dictionary, group


def _low_rank(rest: Tensor, rank: int, moment: Tensor | None) -> tuple[Tensor, Tensor]:
    """A [N, r] and B [r, K] of least ||(rest - A B) C||, C C^T the inputs' autocorrelation."""
    n, k = rest.shape
    factor = torch.eye(k, dtype=torch.float64, device=rest.device)
    if moment is not None:
        damping = 1e-6 * moment.diagonal().mean()
        factor = torch.linalg.cholesky(moment + damping * factor)
    u, s, v = torch.linalg.svd(rest @ factor, full_matrices=False)
    width = min(rank, n, k)
    a, b = rest.new_zeros(n, rank), rest.new_zeros(rank, k)
    root = s[:width].sqrt()
    a[:, :width] = u[:, :width] * root
    whitened = root[:, None] * v[:width]
    b[:width] = torch.linalg.solve_triangular(factor, whitened, upper=False, left=False)
    return a, b


def _layer(dictionary: AtomDictionary, layer: int, linear: nn.Module) -> AtomLinear:
    assert isinstance(linear, nn.Linear)
    made = AtomLinear(dictionary, layer, linear.bias is not None)
    made.bias = linear.bias
    return made.train(linear.training)
