"""The benchmark of finding neurons: what is compared with what."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from tests.conftest import ROOT


def test_every_way_searches_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loaded under a name of its own: the folder `tests/localization` is called so, too.
    spec = spec_from_file_location("localization_benchmark", ROOT / "benchmarks" / "localization.py")
    assert spec is not None and spec.loader is not None
    benchmark = module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    few = {"seeds": 3, "initial_theta": 2.0, "theta_step": 1.0}
    monkeypatch.setattr(
        benchmark, "WAYS", {name: replace(settings, **few) for name, settings in benchmark.WAYS.items()}
    )
    others = [f"other {number}" for number in range(20)]
    prompts = ["other 50", "memorized 0", "memorized 1"]
    figures = benchmark.measure(benchmark.planted_predictor(8), prompts, others, most=1, threshold=0.6)
    ways = figures["ways"]
    assert figures["prompts"] == 1
    assert ways["as published"]["same_neurons"] == ways["the same, fast"]["same_neurons"] == 1
    assert ways["as published"]["speedup"] == ways["as published"]["times_fewer_images"] == 1
    assert ways["the same, fast"]["times_fewer_images"] > 1.5
    assert ways["default"]["kept_seeds"][0] > 0
