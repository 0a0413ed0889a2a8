# ruff: noqa: E501
"""Adapters, masks, statistics, checkpoints and networks of strangers: no code, no NaN, no guesses about what is missing."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memtrain.cli.checkpoint_model import checkpoint_module, checkpoint_pipeline, read_checkpoint
from memtrain.families.network_file import load_network
from memtrain.localization.authors_files import read_tensors
from memtrain.localization.statistics import ActivationStatistics
from memtrain.models.adapter_file import adapter_path, load_adapter
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.pipeline import load_pipeline
from tests.hostile.files import HEADER, MODEL, Mark, saved, tensors_in
from tests.hostile.rows import Row, check, written

BIG = {"x" * 100: torch.zeros(1)}
NEGATIVE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}'


def adapters(name: str, make: Callable[[Path], Path], says: str) -> Row:
    """A LoRA file for the small model."""
    return Row(name, lambda folder: load_adapter(load_pipeline(str(MODEL)), adapter_path(make(folder))), says)


LORA = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 5)}
ADAPTERS = [
    adapters(
        "lora_pickled",
        lambda f: written(f, pickle.dumps(Mark()), "f.safetensors"),
        r"f\.safetensors is not a safetensors",
    ),
    adapters("lora_empty", lambda f: written(f, "", "f.safetensors"), r"f\.safetensors is not a safetensors file"),
    adapters("lora_huge_header", lambda f: written(f, HEADER, "f.safetensors"), r"f\.safetensors is not a safetensors"),
    adapters(
        "lora_backwards",
        lambda f: written(f, struct.pack("<Q", len(NEGATIVE)) + NEGATIVE, "f.safetensors"),
        r"f\.safetensors is no",
    ),
    adapters("lora_of_nothing", lambda f: tensors_in(f, {}), r"f\.safetensors"),
    adapters("lora_wrong_keys", lambda f: tensors_in(f, BIG), r"f\.safetensors"),
    adapters("lora_half", lambda f: tensors_in(f, LORA), r"f\.safetensors"),
    adapters(
        "lora_nan",
        lambda f: tensors_in(f, {"unet.a.lora_A.weight": torch.full((2, 2), float("nan"))}),
        r"unet\.a\.lora_A\.weight holds NaN",
    ),
    adapters(
        "lora_no_options",
        lambda f: tensors_in(f, LORA, lora_adapter_metadata="{"),
        r"'lora_adapter_metadata' .* is not JSON",
    ),
    adapters(
        "lora_option_list",
        lambda f: tensors_in(f, LORA, lora_adapter_metadata="[1]"),
        r"'lora_adapter_metadata' .*list",
    ),
    adapters("lora_folder", lambda f: f, r"no LoRA file"),
]
FORMAT = "memtrain.neuron_mask.1"
STATISTICS = "memtrain.activation_statistics.1"


def mask(name: str, values: dict[str, torch.Tensor], says: str, **metadata: str) -> Row:
    return Row(name, lambda folder: NeuronMask.load(tensors_in(folder, values, **metadata)), says)


def statistics(name: str, values: dict[str, torch.Tensor], says: str, **metadata: str) -> Row:
    return Row(name, lambda folder: ActivationStatistics.load(tensors_in(folder, values, **metadata)), says)


ONE = {"a": torch.tensor([1])}
PAIR = {"mean/a": torch.ones(3), "std/a": torch.ones(4)}
KNOWN = {"format": STATISTICS, "layers": '["a"]', "origin": "{}"}
MASKS = [
    mask("mask_of_no_format", ONE, r"is not a neuron mask: its format"),
    mask(
        "mask_of_fractions",
        {"a": torch.ones(2)},
        r"not a neuron mask: 'a' is torch\.float32",
        format=FORMAT,
        factor="0",
    ),
    mask("mask_of_a_table", {"a": torch.ones(2, 2).long()}, r"'a' is .* of shape \(2, 2\)", format=FORMAT, factor="0"),
    mask("mask_without_factor", ONE, r"'factor' of its metadata is not JSON", format=FORMAT),
    mask("mask_factor_text", ONE, r"its factor is", format=FORMAT, factor='"a"'),
    mask("mask_factor_nan", ONE, r"is not JSON: NaN", format=FORMAT, factor="NaN"),
    mask("mask_of_nothing", {}, r"without a channel", format=FORMAT, factor="0"),
    Row("mask_pickled", lambda f: NeuronMask.load(written(f, pickle.dumps(Mark()), "m")), r"m is not a neuron mask"),
    statistics("statistics_of_no_format", PAIR, r"holds no activation statistics: its format"),
    statistics("statistics_of_two_shapes", PAIR, r"'a' has means and standard deviations of different", **KNOWN),
    statistics("statistics_without_a_layer", ONE, r"mean/a", **KNOWN),
    statistics("statistics_no_json", PAIR, r"'layers' of its metadata is not JSON", **{**KNOWN, "layers": "["}),
    statistics(
        "statistics_odd_origin",
        {"mean/a": torch.ones(3), "std/a": torch.ones(3)},
        r"evil",
        **{**KNOWN, "origin": '{"evil": 1}'},
    ),
    statistics(
        "statistics_nan",
        {"mean/a": torch.full((3,), float("nan")), "std/a": torch.ones(3)},
        r"mean/a holds NaN",
        **KNOWN,
    ),
]


def checkpoint(name: str, value: Any, says: str) -> Row:
    return Row(name, lambda folder: checkpoint_module(read_checkpoint(saved(folder, value))), says)


SAYS = {"pretrained": str(MODEL), "lora": None, "train_text_encoder": False}
KEY = "text_to_image"
CHECKPOINTS = [
    checkpoint(
        "checkpoint_of_objects", {"state_dict": {}, KEY: Mark()}, r"cannot be read as plain tensors and numbers"
    ),
    checkpoint("checkpoint_of_a_list", [1], r"does not say which model it is of: it holds a list"),
    checkpoint("checkpoint_of_others", {"state_dict": {}, "epoch": 1}, r"does not say which model.*state_dict, epoch"),
    checkpoint(
        "checkpoint_of_text", {"state_dict": {}, KEY: "a"}, r"no checkpoint of memtrain: it names no pretrained"
    ),
    checkpoint(
        "checkpoint_of_no_model", {"state_dict": {}, KEY: {**SAYS, "pretrained": 3}}, r"names no pretrained model"
    ),
    checkpoint("checkpoint_odd_lora", {"state_dict": {}, KEY: {**SAYS, "lora": "a"}}, r"options of adapters are 'a'"),
    checkpoint(
        "checkpoint_evil_lora",
        {"state_dict": {}, KEY: {**SAYS, "lora": {"evil": 1}}},
        r"adapter options of the checkpoint",
    ),
    checkpoint(
        "checkpoint_odd_flag",
        {"state_dict": {}, KEY: {**SAYS, "train_text_encoder": "no"}},
        r"train_text_encoder is 'no'",
    ),
    checkpoint("checkpoint_odd_state", {"state_dict": {"a": 1}, KEY: SAYS}, r"something else than tensors"),
    checkpoint("checkpoint_nan", {"state_dict": {"a.b": torch.tensor(float("nan"))}, KEY: SAYS}, r"a\.b holds NaN"),
    checkpoint("checkpoint_of_nothing", {"state_dict": {}, KEY: SAYS}, r"lacks \d+ of \d+ trained weights"),
    checkpoint(
        "checkpoint_of_no_base", {"state_dict": {}, KEY: {**SAYS, "pretrained": "./gone"}}, r"no model '\./gone'"
    ),
    Row("checkpoint_cut", lambda f: read_checkpoint(written(f, b"PK\x03\x04", "f.ckpt")), r"f\.ckpt cannot be read"),
    Row("checkpoint_empty", lambda f: checkpoint_pipeline(written(f, b"", "f.ckpt")), r"f\.ckpt cannot be read"),
    Row("checkpoint_text", lambda f: read_checkpoint(written(f, "hello", "f.ckpt")), r"f\.ckpt cannot be read"),
    Row(
        "checkpoint_pickle",
        lambda f: read_checkpoint(written(f, pickle.dumps(Mark()), "f.ckpt")),
        r"f\.ckpt cannot be read",
    ),
    Row("statistics_of_objects", lambda f: read_tensors(saved(f, ([Mark()], [Mark()]), "s.pt")), r"s\.pt holds no"),
    Row("statistics_pickle", lambda f: read_tensors(written(f, pickle.dumps(Mark()), "s.pt")), r"s\.pt holds no"),
    Row(
        "statistics_infinite",
        lambda f: read_tensors(saved(f, ([torch.full((2,), float("inf"))],) * 2, "s.pt")),
        r"s\.pt.* holds infinity",
    ),
    Row(
        "script_untrusted", lambda f: load_network(written(f, b"PK", "n.torchscript")), r"n\.torchscript is TorchScript"
    ),
    Row("script_by_another_name", lambda f: load_network(saved(f, Mark(), "n.dat")), r"n\.dat is TorchScript"),
    Row("onnx_broken", lambda f: load_network(written(f, b"broken", "n.onnx")), r"n\.onnx"),
]


ROWS = [*ADAPTERS, *MASKS, *CHECKPOINTS]


@pytest.mark.parametrize("row", [row.param for row in [*MASKS, *CHECKPOINTS]])
def test_hostile_weights_are_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row.param for row in ADAPTERS])
def test_hostile_adapters_are_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)
