"""docs/support_matrix.md says what is true now."""

from __future__ import annotations

import dataclasses

import pytest

import support_matrix
from wlib.bench.environment import Environment
from wlib.bench.ops import OPS
from wlib.bench.rows import Row


def measured_row(
    m: int,
    arm: str = "wlib",
    device: str = "NVIDIA H200",
    op: str = "int4fp8",
    **sizes: int,
) -> Row:
    values = {field.name: 0 for field in dataclasses.fields(Row)}
    here = {field.name: "" for field in dataclasses.fields(Environment)}
    here |= {"device": device, "date": "2030-01-02T03:04:05+00:00", "commit": "abc"}
    changes = {"op": op, "arm": arm, "sizes": {"m": m, "group_size": 128} | sizes}
    return Row(**{**values, **changes, "environment": Environment(**here)})  # type: ignore[arg-type]


def test_page_is_up_to_date() -> None:
    assert support_matrix.PAGE.read_text() == support_matrix.page(support_matrix.results())


def test_every_kernel_of_the_budget_is_known_to_the_simulators_tests() -> None:
    """By its present name, or its row would say `compiled`."""
    assert set(support_matrix.read_budget()) <= support_matrix.simulated_kernels()


def test_a_measurement_changes_the_row_that_served_it() -> None:
    before = support_matrix.page([]).splitlines()
    after = support_matrix.page([measured_row(7), measured_row(1)]).splitlines()
    changed = [line for line in after if line not in before]
    assert changed == [
        "| `int4fp8_gemm` | sm_90a | M <= 8 | sm90_decode, tile of 8 tokens "
        "| measured on NVIDIA H200, 2030-01-02, abc (m = 1, 7; group_size = 128) |"
    ]


@pytest.mark.parametrize(
    ("row", "condition"),
    [
        (measured_row(9), "M <= 16"),
        (measured_row(65), "any M"),
        (measured_row(16, op="int4fp8_grouped", top_k=2, experts=8), "T <= 4 E"),
        (measured_row(17, op="int4fp8_grouped", top_k=2, experts=8), "T <= 8 E"),
        (measured_row(1, op="prefill", head_dim=128), "head_dim 128"),
    ],
)
def test_the_row_that_serves_a_problem_follows_from_its_sizes(row: Row, condition: str) -> None:
    table = support_matrix.entries()
    served = [e for e, rows in support_matrix.measurements([row], table).items() if rows]
    assert [entry.condition for entry in served] == [condition]


def test_every_measured_op_is_in_the_benchmark_and_in_the_dispatch_tables() -> None:
    dispatched = {entry.op for entry in support_matrix.entries()}
    for (op, arm), name in support_matrix.MEASURED_OPS.items():
        assert arm in {one.name for one in OPS[op].arms}
        assert name in dispatched


@pytest.mark.parametrize(
    "row", [measured_row(8, arm="torch.matmul"), measured_row(8, device="CPU")]
)
def test_rows_of_other_arms_and_of_cpus_change_nothing(row: Row) -> None:
    assert support_matrix.page([row]) == support_matrix.page([])


def test_a_configuration_that_is_not_in_the_simulator_is_only_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (entry,) = (e for e in support_matrix.entries() if e.condition == "M <= 16")
    assert support_matrix.state(entry, []) == "simulated"
    assert len(support_matrix.compiled_kernels(entry)) == 6  # groups per tile, zero points
    fewer = support_matrix.simulated_kernels() - {
        next(iter(support_matrix.compiled_kernels(entry)))
    }
    monkeypatch.setattr(support_matrix, "simulated_kernels", lambda: fewer)
    assert support_matrix.state(entry, []) == "compiled"
