"""FID, KID and CLIP-FID of folders of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.distribution_figures import frechet_figure, kernel_figure
from memtrain.evaluation.stages.metrics.layout import ENDINGS
from memtrain.evaluation.stages.metrics.networks import Networks, readable


def distances(
    spaces: Mapping[str, list[dict[str, Tensor]]], real: str | None, networks: Networks, unreadable: list[str]
) -> dict[str, Any]:
    """Measure FID, KID and CLIP-FID of generations and of unmitigated images to real images."""
    compared: dict[str, list[Tensor]] = {}
    if real is None:
        parts = spaces["originals"]
    else:
        files = [file for file in sorted(Path(real).rglob("*")) if file.suffix.lower() in ENDINGS]
        if not files:
            raise DataError(f"{real} holds no images", expected="a folder of images", remedy="check the path")
        parts = [networks.seen([image]) for image in readable(files, unreadable)]
    for part in parts:
        for name, features in part.items():
            compared.setdefault(name, []).append(features)
    found: dict[str, Any] = {}
    for kind, said in (("generated", ""), ("unblocked", "_unblocked")):
        for name, reals in compared.items():
            own = [(number, part[name]) for number, part in enumerate(spaces[kind]) if name in part]
            if not own or min(sum(map(len, reals)), sum(len(one) for _, one in own)) < 2:
                continue
            pair = torch.cat(reals), torch.cat([one for _, one in own])
            groups = [number for number, one in own for _ in range(len(one))]
            found[f"{name}{said}"] = frechet_figure(*pair, groups=groups)
            if name == "FID":
                found[f"KID{said}"] = kernel_figure(*pair, groups=groups)
    return found
