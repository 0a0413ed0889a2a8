"""A checkpoint of an earlier version, which kept evidence of all columns by name, is taken up."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.kept_arrays import unpacked_counts, unpacked_names
from memtrain.families.table import Families

COLUMNS, SCORED = 4, slice(1, 3)
INDEX = Families(
    {f"k{row}": f"k{row // 2 * 2}" for row in range(20)}, {f"k{row}": f"k{row // 4 * 4}" for row in range(40)}
)


def made(heldout: bool, families: bool) -> Calibration:
    found = Calibration(COLUMNS, scored=SCORED, memorized_when="high", buckets=1, minimum_visits=2, heldout=heldout)
    return found.group_by(INDEX if families else None, pictures=100)


def go_on(calibration: Calibration, steps: range, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        if calibration.heldout is not None:
            values = torch.randn(30, COLUMNS, generator=generator)
            calibration.add_heldout([f"h{row}" for row in range(30)], [0] * 30, values)
        rows = torch.randint(120, (40,), generator=generator).tolist()
        values = torch.randn(40, COLUMNS, generator=generator) + torch.tensor([[4.0 * (row < 6)] for row in rows])
        calibration.add([f"k{row}" for row in rows], [0] * 40, values, step)


def earlier(calibration: Calibration) -> dict[str, Any]:
    """The state as the earlier version wrote it."""

    def evidence(state: dict[str, Any]) -> dict[str, Any]:
        if not state:
            return {}
        visits = unpacked_counts(state["visits"]).double()
        wide = {"visits": visits, "mean": state["mean"], "total": state["total"], "dilution": torch.ones_like(visits)}
        spread = {name: torch.full((len(part), COLUMNS), 77.0).double() for name, part in wide.items()}
        for name, part in wide.items():
            spread[name][:, SCORED] = part
        return {"keys": unpacked_names(state["names"]), **spread}

    state, names = copy.deepcopy(calibration.state_dict()), calibration.samples.names
    early = state["early"]
    return {
        **state,
        "samples": evidence(state["samples"]),
        "heldout": evidence(state["heldout"]),
        "highest": dict(calibration.highest),
        "peak": {name: peak for name, peak in zip(names, state["peak"].tolist(), strict=True) if peak > -math.inf},
        "frequent": sorted(names[row] for row in state["frequent"].tolist()),
        "early": None
        if early is None
        else {names[row]: peak for row, peak in zip(early["rows"].tolist(), early["peaks"].tolist(), strict=True)},
        **(
            {}
            if "levels" not in state
            else {
                "levels": {
                    **state["levels"],
                    "beside": {level: evidence(part) for level, part in state["levels"]["beside"].items()},
                }
            }
        ),
    }


@pytest.mark.parametrize("families", [False, True])
@pytest.mark.parametrize(("heldout", "steps"), [(True, 12), (False, 3), (False, 12)])
def test_it_goes_on_as_it_would_have(heldout: bool, steps: int, families: bool) -> None:
    whole, again = made(heldout, families), made(heldout, families)
    go_on(whole, range(steps), seed=0)
    assert whole.bulk.early == (not heldout and steps == 3)
    again.load_state_dict(earlier(whole))
    for calibration in (whole, again):
        go_on(calibration, range(steps, steps + 8), seed=1)
    assert repr(again.state_dict()) == repr(whole.state_dict())
    assert whole.threshold < math.inf
