"""What the benchmarks share: the machine's kind, and sections that stay beside each other."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import common


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16", "AMX"),
        ("fpu avx2 avx512f avx512_bf16", "AVX-512 bf16"),
        ("fpu avx2 avx512f", "AVX-512"),
        ("fpu avx avx2", "AVX2"),
        ("fpu avx", "no matrix units known"),
    ],
)
def test_the_cpus_kind(tmp_path: Path, flags: str, kind: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n")
    assert common.matrix_units(str(file)) == kind


def test_a_machine_without_that_file(tmp_path: Path) -> None:
    assert common.matrix_units(str(tmp_path / "none")) == "no matrix units known"


def test_results_of_two_kinds_stay_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.md"
    for kind, speed in (("AMX", "1"), ("AVX2", "2"), ("AMX", "3")):
        monkeypatch.setattr(common, "matrix_units", lambda kind=kind: kind)
        common.section("Speed", ["images/s"], [[speed]], n="n = 1", out=str(out))
    text = out.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Speed (AMX)",
        "## Speed (AVX2)",
    ]
    assert "| 3 |" in text
    assert "| 2 |" in text
    assert "| 1 |" not in text
    assert text.count(" with AMX, ") == 1
