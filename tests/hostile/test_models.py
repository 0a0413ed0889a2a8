"""Models that somebody else made: nothing that a folder or file names is imported, unpickled, fetched or guessed."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtrain.models.pipeline import load_pipeline
from tests.hostile.files import HEADER, MODEL, Mark, saved, tensors_in
from tests.hostile.rows import Row, check, written


def copied(folder: Path) -> Path:
    """A model folder that may be changed."""
    shutil.copytree(MODEL, folder / "m", symlinks=True)
    return folder / "m"


def model(name: str, change: Callable[[Path], object], says: str) -> Row:
    """A model folder with one change."""

    def call(folder: Path) -> None:
        place = copied(folder)
        change(place)
        load_pipeline(str(place))

    return Row(name, call, says)


def index(**parts: Any) -> Callable[[Path], object]:
    """Change model_index.json."""

    def change(place: Path) -> None:
        content = json.loads((place / "model_index.json").read_text()) | parts
        (place / "model_index.json").write_text(json.dumps(content))

    return change


def settings(part: str, **changes: Any) -> Callable[[Path], object]:
    """Change the configuration of a part."""

    def change(place: Path) -> None:
        path = place / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Change the tensors of a part."""

    def changed(place: Path) -> None:
        path = next((place / part).glob("*.safetensors"))
        values = load_file(path)
        change(values)
        path.unlink()
        save_file({name: value.contiguous() for name, value in values.items()}, path, {"format": "pt"})

    return changed


def content(path: str, data: str | bytes) -> Callable[[Path], object]:
    """Put something else into a file of the model."""
    return lambda place: written(place, data, path)


def pickled(part: str, name: str) -> Callable[[Path], object]:
    """Pickled weights in place of the others."""

    def change(place: Path) -> None:
        for file in (place / part).glob("*.safetensors"):
            file.unlink()
        torch.save({"a": Mark()}, place / part / name)

    return change


def sharded(files: Any) -> Callable[[Path], object]:
    """A list of shards in place of the UNet's weights."""

    def change(place: Path) -> None:
        (place / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        written(place, json.dumps({"weight_map": files}), "unet/diffusion_pytorch_model.safetensors.index.json")

    return change


def first(values: dict[str, torch.Tensor]) -> str:
    return sorted(values)[0]


UNET = "unet/diffusion_pytorch_model.safetensors"
LYING = b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
FOLDERS = [
    model(
        "part_of_a_stranger",
        index(unet=["stranger18", "Model"]),
        r"model_index\.json takes 'unet' from 'stranger18\.Model'",
    ),
    model("part_of_os", index(tokenizer=["os", "system"]), r"takes 'tokenizer' from 'os\.system'"),
    model("part_of_builtins", index(vae=["builtins", "open"]), r"takes 'vae' from 'builtins\.open'"),
    model("added_part_of_a_stranger", index(extra=["stranger18", "Thing"]), r"takes 'extra' from"),
    model("code_in_the_folder", index(unet=["unet.model", "Model"]), r"takes 'unet' from 'unet\.model\.Model'"),
    model(
        "class_with_code_of_its_own", index(text_encoder=["transformers", "AutoModel"]), r"takes 'text_encoder' from"
    ),
    model("path_as_class", index(unet=["diffusers", "../x"]), r"takes 'unet' from 'diffusers\.\.\./x'"),
    model("path_as_part", index(**{"../../x": ["diffusers", "UNet2DConditionModel"]}), r"names a part '\.\./\.\./x'"),
    model("absolute_part", index(**{"/etc": ["diffusers", "UNet2DConditionModel"]}), r"names a part '/etc'"),
    model("escape_as_part", index(**{"\x1b[2J": ["diffusers", "A"]}), r"names a part"),
    model("three_words", index(unet=["diffusers", "a", "b"]), r"takes 'unet' from"),
    model("number_as_class", index(unet=["diffusers", 3]), r"takes 'unet' from"),
    model("pipeline_of_a_stranger", index(_class_name=["stranger18", "Model"]), r"stranger18|guidance of"),
    model("pipeline_of_another_kind", index(_class_name="EvilPipeline"), r"guidance of EvilPipeline"),
    model("pipeline_number", index(_class_name=3), r"guidance of 3 "),
    model("no_json", content("model_index.json", "{"), r"model_index\.json is not JSON"),
    model("json_list", content("model_index.json", "[1]"), r"model_index\.json holds a list"),
    model("json_nan", content("model_index.json", '{"_class_name": NaN}'), r"model_index\.json is not JSON: NaN"),
    model(
        "json_deep", content("model_index.json", "[" * 100_000), r"model_index\.json is not JSON: it is nested too deep"
    ),
    model("json_latin1", content("model_index.json", "{'a': 'é'}".encode("latin1")), r"model_index\.json is not UTF-8"),
    model("part_json", content("unet/config.json", "{"), r"unet/config\.json is not JSON"),
    model("part_json_list", content("unet/config.json", "[]"), r"unet/config\.json holds a list"),
    model("part_json_nul", content("vae/config.json", '{"a": "\0"}'), r"vae/config\.json holds a NUL"),
    model(
        "code_of_a_part",
        settings("text_encoder", auto_map={"AutoModel": "stranger18.Model"}),
        r"asks for code of its own",
    ),
    model("text_as_channels", settings("unet", in_channels="four"), r"in_channels='four'"),
    model("no_blocks", settings("unet", block_out_channels=[]), r"cannot be loaded"),
    model("wide_blocks", settings("unet", cross_attention_dim=7), r"cannot be loaded|lacks"),
    model("pickled_unet", pickled("unet", "diffusion_pytorch_model.bin"), r"cannot be loaded|no file"),
    model("pickled_text_encoder", pickled("text_encoder", "pytorch_model.bin"), r"cannot be loaded|no file"),
    model(
        "shards_elsewhere",
        sharded({"a": "../../../x.safetensors"}),
        r"index\.json: a file of its weight_map is '\.\./\.\./\.\./x",
    ),
    model("absolute_shards", sharded({"a": "/etc/passwd"}), r"weight_map is '/etc/passwd'"),
    model("pickled_shards", sharded({"a": "a.bin"}), r"names a\.bin"),
    model("shards_as_list", sharded(["a"]), r"has no weight_map"),
    model("empty_weights", content(UNET, b""), r"cannot be loaded|no safetensors"),
    model("huge_header", content(UNET, HEADER + b"{}"), r"cannot be loaded"),
    model("cut_header", content(UNET, struct.pack("<Q", 100) + b"{"), r"cannot be loaded"),
    model("lying_lengths", content(UNET, struct.pack("<Q", len(LYING)) + LYING), r"cannot be loaded"),
    model("nan_weight", weights("unet", lambda v: v[first(v)].fill_(float("nan"))), r"m: unet's \S+ holds NaN"),
    model("infinite_weight", weights("vae", lambda v: v[first(v)].fill_(float("inf"))), r"m: vae's \S+ holds infinity"),
    model("missing_weight", weights("unet", lambda v: v.pop("conv_in.weight")), r"conv_in\.weight|lacks"),
    model("missing_text", weights("text_encoder", lambda v: v.pop(first(v))), r"text_encoder lacks 1 of \d+ weights"),
    model("other_shape", weights("unet", lambda v: v.update({"conv_in.weight": torch.zeros(3)})), r"conv_in\.weight"),
]


def single(name: str, make: Callable[[Path], Path], says: str) -> Row:
    return Row(name, lambda folder: load_pipeline(str(make(folder))), says)


FILES = [
    single("file_pickled", lambda f: saved(f, Mark(), "d.ckpt"), r"d\.ckpt is pickled"),
    single("file_pickle_renamed", lambda f: saved(f, Mark(), "d.safetensors"), r"d\.safetensors is not a safetensors"),
    single("file_gguf", lambda f: written(f, "GGUF", "d.gguf"), r"d\.gguf is not a safetensors file"),
    single("file_empty", lambda f: written(f, "", "d.safetensors"), r"d\.safetensors is not a safetensors"),
    single("file_huge_header", lambda f: written(f, HEADER, "d.safetensors"), r"d\.safetensors is not a safetensors"),
    single("file_of_nothing", lambda f: tensors_in(f, {}), r"f\.safetensors"),
    single("file_of_others", lambda f: tensors_in(f, {"x" * 100: torch.zeros(1)}), r"f\.safetensors"),
    single(
        "file_scalars",
        lambda f: tensors_in(f, {"model.diffusion_model.input_blocks.0.0.weight": torch.tensor(1.0)}),
        r"f\.safetensors",
    ),
    single("file_of_a_script", lambda f: written(f, "import os", "d.py"), r"d\.py is not a safetensors file"),
]
ROWS = [*FOLDERS, *FILES]
PLAIN = 6
"""Folders in the plain suite; the others, most of which load a model, are among the slow tests."""


@pytest.mark.parametrize("row", [row.param for row in [*FOLDERS[:PLAIN], *FILES]])
def test_a_hostile_model_is_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row.param for row in FOLDERS[PLAIN:]])
def test_a_hostile_folder_is_refused(row: Row, confined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(row, confined, capsys)


def test_a_good_folder_is_loaded_without_a_look_at_the_hub(confined: Path) -> None:
    assert type(load_pipeline(str(MODEL))).__name__ == "StableDiffusionPipeline"
