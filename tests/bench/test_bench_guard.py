"""No stage of ours has become slower against a library's work on the same data than the repo has recorded."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ratios", Path(__file__).parents[2] / "benchmarks" / "ratios.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_ratio_is_worse_by_a_quarter(guard: ModuleType) -> None:
    recorded = json.loads(guard.RECORDED.read_text()).get(guard.processor())
    if recorded is None:
        pytest.skip("no ratios are recorded for this kind of processor: python benchmarks/ratios.py --renew")
    worst: dict[str, float] = {}
    shortest: dict[str, list[float]] = {}
    for _ in range(8):  # on a computer that others use the shortest call of one try may still have been disturbed
        found = guard.ratios(shortest=shortest)
        worst = {name: found[name] / recorded[name] for name in recorded if found[name] > 1.25 * recorded[name]}
        if not worst:
            return
    pytest.fail(f"slower than recorded, by a factor of: {worst}")
