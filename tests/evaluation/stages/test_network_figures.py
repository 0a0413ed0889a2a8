"""Figures of networks as rows: each convention's own names, and pairs without and with."""

from __future__ import annotations

from typing import Any

from memtrain.evaluation.stages.network_figures import network_rows, paired_networks, paired_rows


def median(value: float | None, n: int = 4) -> dict[str, Any]:
    return {"median": value, "mad": 0.25, "n": n}


def test_rows_of_both_kinds_of_figures() -> None:
    figures = {
        "SSCD_orig": {"all": median(0.5), "verbatim": median(0.75, 1), "template": median(None, 0)},
        "SSCD (dcr)": {"mean": 0.125, "percentile_95": 0.875},
        "sscd_convention": {"name": "nemo"},
        "clip": "CLIP",
        "without_mask": {"SSCD_orig": {"all": median(0.625)}},
    }
    assert network_rows(figures) == [
        ("SSCD_orig", "0.500 ± 0.250", "4"),
        ("SSCD_orig, verbatim", "0.750 ± 0.250", "1"),
        ("SSCD (dcr), mean", "0.125", ""),
        ("SSCD (dcr), percentile 95", "0.875", ""),
    ]
    assert paired_rows(figures)[0] == ("SSCD_orig", "0.625 ± 0.250", "0.500 ± 0.250", "4")
    assert paired_rows(figures)[1][1] == "", "the other images have no verbatim ones of their own"


def test_distances_say_of_how_many_images() -> None:
    def distance(value: float, rank: bool) -> dict[str, Any]:
        return {"FID": {"value": value, "n_real": 3, "n_generated": 6, "full_rank": rank}}

    networks = {
        "groups": {},
        "distribution_without": distance(1.5, True),
        "distribution_with": distance(2.5, False),
    }
    shown = paired_networks(networks)
    assert "1.500 (6 to 3 images)" in shown and "2.500 (6 to 3 images, fewer images than dimensions)" in shown
