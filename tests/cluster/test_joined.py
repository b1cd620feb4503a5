"""What a search says of a Ray that it joins, with a Ray that only tells its resources."""

from types import SimpleNamespace

import pytest

from mnist_ray.cluster import joined


@pytest.mark.parametrize(
    ("free", "said"),
    [(2.0, "2 of 2 CPUs are free\n"), (0.0, "; its CPUs are taken: trials wait for them\n")],
)
def test_joining_says_whether_its_cpus_are_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: float, said: str
) -> None:
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        init=lambda **_: SimpleNamespace(dashboard_url=None),
        cluster_resources=lambda: {"CPU": 2.0},
        available_resources=lambda: {"CPU": free},
        get_runtime_context=lambda: SimpleNamespace(gcs_address="192.0.2.2:6379", runtime_env={}),
    )
    monkeypatch.setattr(joined, "ray", ray)
    with joined.join({}) as cluster:
        assert cluster.address == "192.0.2.2:6379"
    out = capsys.readouterr().out
    assert out.startswith("ray: joined 192.0.2.2:6379, ")
    assert out.endswith(said)
