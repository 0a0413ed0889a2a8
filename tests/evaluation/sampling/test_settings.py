"""The settings of a sampling: what they refuse, and what is derived from them."""

from __future__ import annotations

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"batch_size": 0}, {"steps": 0}])
def test_senseless_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="The sampling settings are invalid"):
        Sampling(**wrong)


def test_what_is_derived() -> None:
    sampling = Sampling(seeds=range(3, 6), batch_size=8)
    assert sampling.seeds == (3, 4, 5)
    assert sampling == Sampling(seeds=[3, 4, 5], batch_size=8), "a value, however its seeds are given"
    assert sampling.prompts_at_once == 2
    assert Sampling(batch_size=1).prompts_at_once == 1, "more seeds than images at once"
    assert sampling.said() == {"seeds": [3, 4, 5], "steps": 20, "guidance_scale": 4.0}
    assert sampling.progress and not sampling.quiet.progress
    assert sampling.sized_as(torch.zeros(2, 3, 16, 24)).size == (16, 24)
    assert sampling.sized_as(None) is sampling
