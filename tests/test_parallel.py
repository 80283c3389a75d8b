"""Sharded INT4 weights, and tensor parallelism in two processes against one layer."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

import wlib
from wlib.nn import Int4Fp8Linear
from wlib.parallel import ColwiseInt4, RowwiseInt4

WORLD = 2


def weight(n: int, k: int, group_size: int = 64, **options: bool) -> wlib.Int4Weight:
    """Every optional tensor, unless `options` says otherwise; scales are powers of two."""
    groups = k // group_size
    zero, channel = options.get("zero_point", True), options.get("channel_scale", True)
    return wlib.Int4Weight(
        codes=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        group_scale=torch.exp2(torch.randint(-3, 4, (n, groups)).float()).bfloat16(),
        zero_point=torch.randint(-8, 8, (n, groups)).float() if zero else None,
        channel_scale=torch.exp2(torch.randint(-2, 3, (n,)).float()) if channel else None,
    )


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("optional", [True, False])
def test_the_shards_are_the_parts_of_the_weight(dim: int, world: int, optional: bool) -> None:
    whole = weight(24, 384, zero_point=optional, channel_scale=optional)
    shards = [whole.shard(dim, rank, world) for rank in range(world)]
    dense = torch.cat([shard.dequantize() for shard in shards], dim)
    assert torch.equal(dense, whole.dequantize())
    for shard in shards:
        assert (shard.n, shard.k)[dim] * world == (whole.n, whole.k)[dim]
        assert shard.group_size == whole.group_size
        assert (shard.zero_point is not None) == (shard.channel_scale is not None) == optional
        assert torch.equal(shard.pack().unpack().dequantize(), shard.dequantize())


@pytest.mark.parametrize(
    ("dim", "rank", "world", "message"),
    [
        (2, 0, 2, r"dim of 0 \(rows\) or 1 \(columns\), got 2 \(argument 'dim'\)"),
        (-1, 0, 2, r"argument 'dim'"),
        (0, 0, 5, r"world to divide 24 rows, got 5 \(argument 'world'\)"),
        (1, 0, 4, r"world to divide 6 groups of columns, got 4 \(argument 'world'\)"),
        (1, 0, 0, r"argument 'world'"),
        (0, 2, 2, r"rank from 0 to 1, got 2 \(argument 'rank'\)"),
        (0, -1, 2, r"argument 'rank'"),
    ],
)
def test_shards_that_do_not_exist_are_refused(
    dim: int, rank: int, world: int, message: str
) -> None:
    with pytest.raises(ValueError, match=r"^wlib\.Int4Weight\.shard: expected .*" + message):
        weight(24, 384).shard(dim, rank, world)


class Mlp(nn.Module):
    """The gated feed-forward block of a transformer, [256] -> [384] -> [64]."""

    def __init__(self, permuted: bool = False) -> None:
        super().__init__()
        order = torch.randperm(256).int() if permuted else None
        self.gate_proj = Int4Fp8Linear.from_weight(weight(384, 256), torch.randn(384), order)
        self.up_proj = Int4Fp8Linear.from_weight(weight(384, 256, zero_point=False))
        self.down_proj = Int4Fp8Linear.from_weight(weight(64, 384), torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Exact(nn.Module):
    """Layers whose whole and partial sums float32 holds: [256] -> [128] and [256] -> [64]."""

    def __init__(self) -> None:
        super().__init__()
        self.column = Int4Fp8Linear.from_weight(weight(128, 256), torch.ones(128))
        self.row = Int4Fp8Linear.from_weight(weight(64, 256), torch.randint(-9, 9, (64,)).float())


def exact_tokens() -> Tensor:
    """[5, 256] of E4M3 integers; each half of a token has the absmax 448, so its scale is 1."""
    x = torch.randint(-2, 3, (5, 256)).float()
    x[:, 3] = x[:, 200] = 448
    return x


def in_process(rank: int, store: str, out: str) -> None:
    """One rank: every rank makes the same modules and keeps its part of them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=WORLD, rank=rank)
    mesh = init_device_mesh("cpu", (WORLD,))
    half = slice(rank * 128, rank * 128 + 128)
    exact, x = Exact(), exact_tokens()
    parallelize_module(exact, mesh, {"column": ColwiseInt4(), "row": RowwiseInt4()})
    results = {"column": exact.column(x), "row": exact.row(x[:, half])}
    torch.manual_seed(0)
    mlp, tokens = Mlp(permuted=True), torch.randn(7, 256)
    plan = {"gate_proj": ColwiseInt4(), "up_proj": ColwiseInt4(), "down_proj": RowwiseInt4()}
    parallelize_module(mlp, mesh, plan)
    results["mlp"] = mlp(tokens)
    results["gate"] = mlp.gate_proj(tokens)
    results["bf16"] = mlp(tokens.bfloat16())
    results["shapes"] = torch.tensor(
        [[m.out_features, m.in_features] for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    )
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each rank computed."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(in_process, (str(folder / "store"), str(folder)), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_exact_sums_equal_the_undivided_layer_bit_for_bit(ranks: list[dict[str, Tensor]]) -> None:
    exact, x = Exact(), exact_tokens()
    assert torch.equal(torch.cat([r["column"] for r in ranks], dim=1), exact.column(x))
    for rank in ranks:
        assert torch.equal(rank["row"], exact.row(x))


def test_a_feed_forward_block_stays_within_the_error_of_its_activations(
    ranks: list[dict[str, Tensor]],
) -> None:
    mlp = Mlp(permuted=True)
    tokens = torch.randn(7, 256)
    gate = torch.cat([rank["gate"] for rank in ranks], dim=1)
    assert torch.equal(gate, mlp.gate_proj(tokens))
    hidden = (nn.functional.silu(gate) * mlp.up_proj(tokens)).double()
    dense = mlp.down_proj.packed.unpack().dequantize().double()
    # Either way of scaling rounds a hidden value by at most 2^-4 of itself or half a subnormal
    # step, 2^-10/448 of the largest; the two may differ by both errors.
    rounding = hidden.abs() * 2.0**-4 + hidden.abs().amax(dim=1, keepdim=True) * 2.0**-10 / 448
    bound = 2 * rounding @ dense.abs().T
    whole = mlp(tokens)
    for rank in ranks:
        assert ((rank["mlp"] - whole).abs() <= bound).all()
        assert torch.equal(rank["mlp"], ranks[0]["mlp"])
    relative = (ranks[0]["mlp"] - whole).norm() / whole.norm()
    assert 0 < relative < 0.05


def test_bfloat16_is_what_each_rank_takes_and_gives(ranks: list[dict[str, Tensor]]) -> None:
    whole = Mlp(permuted=True)(torch.randn(7, 256)).double()
    for rank in ranks:
        assert rank["bf16"].dtype == torch.bfloat16
        assert (rank["bf16"] - whole).norm() / whole.norm() < 0.05
        assert rank["shapes"].tolist() == [[192, 256], [192, 256], [64, 192]]


class OneRank:
    """As much of a device mesh as the checks before any communication look at."""

    def size(self) -> int:
        return 5

    def get_local_rank(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("style", "module", "kind", "message"),
    [
        (ColwiseInt4(), nn.Linear(4, 4), TypeError, "an Int4Fp8Linear, got Linear"),
        (RowwiseInt4(), nn.Linear(4, 4), TypeError, "an Int4Fp8Linear, got Linear"),
        (ColwiseInt4(), Mlp().up_proj, ValueError, "world to divide 384 rows, got 5"),
        (RowwiseInt4(), Mlp().up_proj, ValueError, "world to divide 4 groups of columns, got 5"),
        (RowwiseInt4(), Mlp(permuted=True).gate_proj, ValueError, "got a k_permutation"),
    ],
)
def test_layers_that_cannot_be_divided_are_refused(
    style: ColwiseInt4 | RowwiseInt4, module: nn.Module, kind: type[Exception], message: str
) -> None:
    before = module.state_dict()
    with pytest.raises(kind, match=message):
        style._apply(module, OneRank())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
