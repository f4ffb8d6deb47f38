"""What the runs of a comparison that go on at once get as their devices."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from drgrpo.comparison.comparison import Comparison
from drgrpo.comparison.plan import ArmRun
from drgrpo.settings import Settings


@pytest.mark.parametrize(
    ("visible", "size", "runs_per_gpu", "devices"),
    [
        ("0,1,2", 1, 1, ["0", "1", "2"]),
        ("0,1,2", 2, 1, ["0,1"]),
        ("0,1", 1, 2, ["0", "1", "0", "1"]),
        ("", 1, 1, [""]),
        ("", 1, 3, [""]),  # without a GPU nothing is shared: one run after another
    ],
)
def test_each_run_gets_devices_of_its_own_or_a_share(
    visible: str, size: int, runs_per_gpu: int, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    comparison: Any = SimpleNamespace(
        settings=Settings(runs_per_gpu=runs_per_gpu), runs=[SimpleNamespace(num_devices=size)]
    )
    assert Comparison.devices(comparison) == devices


@pytest.mark.parametrize(
    ("device", "size", "runs_per_gpu", "ray_address", "share"),
    [("0", 1, 1, "", 1), ("2,3", 2, 1, "", 2), ("0", 1, 3, "", 1 / 3), ("", 1, 3, "", 1), ("", 4, 1, "auto", 4)],
)
def test_runs_that_share_a_device_have_their_part_of_its_time(
    device: str, size: int, runs_per_gpu: int, ray_address: str, share: float
) -> None:
    comparison: Any = SimpleNamespace(settings=Settings(runs_per_gpu=runs_per_gpu, ray_address=ray_address))
    assert Comparison.num_devices(comparison, cast(ArmRun, SimpleNamespace(num_devices=size)), device) == share
