"""What a child process sees of the GPUs."""

from __future__ import annotations

import pytest

from trainwire_server.jobs.devices import visible_devices


@pytest.mark.parametrize(
    ("server_sees", "name", "child_sees"),
    [
        (None, "cpu", ""),
        (None, "cuda:0", "0"),
        (None, "cuda:3", "3"),
        ("4,6", "cuda:1", "6"),
        ("GPU-aa, GPU-bb", "cuda:1", "GPU-bb"),
        ("4,6", "cpu", ""),
    ],
)
def test_a_child_sees_the_device_of_its_lease_alone(
    server_sees: str | None, name: str, child_sees: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if server_sees is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", server_sees)
    assert visible_devices(name) == child_sees
