"""Model cards: front matter that parses, text that stays text, figures of the run, and what an evaluation adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from memtrain.callbacks.model_card import (
    BEGIN,
    END,
    LIMITS,
    LORA_FILE,
    NOT_EVALUATED,
    CardFacts,
    add_evaluation,
    card,
    escaped,
    write_cards,
)
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.module import TextImageDataModule
from memtrain.monitoring.options import WatchSettings
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import fit

FIGURES = {
    "threshold": 3.5,
    "false_positive_rate": 0.01,
    "minimum_visits": 6,
    "heldout": 120,
    "samples": 1000,
    "judged": 900,
    "flagged": 12,
    "pictures": 800,
    "pictures_flagged": 10,
    "captions_flagged": 0,
    "canaries": 4,
    "canaries_flagged": 3,
    "power": 0.75,
    "separation": None,
}
RESULTS = {
    "verdict": {"cleared": False, "text": "2 of 10 <b>planted</b> | pictures come back."},
    "replication": {"groups": {"planted": {"n": 10, "reproduced": 2}, "varied_captions": {"n": 5, "reproduced": 0}}},
    "sampling": {"seeds": [0, 1, 2], "steps": 20, "guidance_scale": 4.0},
    "quality": {"heldout_loss": 0.0971},
}


def front(text: str) -> dict[str, Any]:
    """The front matter, as the hub reads it."""
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def facts(**changes: Any) -> CardFacts:
    given = {"base_model": "owner/a-model", "kind": "StableDiffusionPipeline", "calibration": FIGURES, **changes}
    return CardFacts(**given)


def test_the_front_matter_is_the_hubs() -> None:
    found = front(card(facts(lora=SimpleNamespace(rank=8, alpha=None)), adapters=True))
    assert found == {
        "base_model": "owner/a-model",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "memtrain", "lora"],
    }


def test_a_local_base_model_is_no_name_on_the_hub(tmp_path: Path) -> None:
    text = card(facts(base_model=str(tmp_path / "my secret: {base}")))
    assert "base_model" not in front(text)
    assert str(tmp_path) not in text
    assert r"my secret: \{base\}" in text


def test_what_was_found_and_what_it_does_not_prove_stands_there() -> None:
    text = card(facts(data={"training samples": 1000}, mitigations=[("SampleSkipping", "Skip what is flagged.")]))
    for row in (
        "| pictures flagged as memorized | 10 |",
        "| share | 1.25 % |",
        "| false-positive rate that was promised | 0.83 % on average, 2.5 % with 95 % confidence "
        "(order statistic; 1 % was requested) |",
        "| the threshold rests on | 120 held-out pictures |",
        "| samples with too few visits to be judged | 100 |",
        "| canaries flagged (samples known to be repeated) | 3 of 4 |",
        "| training samples | 1,000 |",
        "- SampleSkipping: Skip what is flagged.",
        NOT_EVALUATED,
        *LIMITS,
    ):
        assert row in text, row


def test_a_run_that_nobody_watched_says_so() -> None:
    text = card(facts(calibration=None))
    assert "Training was not watched for memorization." in text
    assert "by memtrain" not in text


@pytest.mark.parametrize("text", ["<script>", "a|b", "[x](y)", "`code`", "*a*", "# head", "a_b", "~~a~~"])
def test_text_is_shown_as_it_is(text: str) -> None:
    shown = escaped(text)
    unescaped = [one for place, one in enumerate(shown) if one in "`*_[]#|~" and shown[place - 1 : place] != "\\"]
    assert not unescaped
    assert "<" not in shown and ">" not in shown


def test_an_evaluation_is_put_into_the_card_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "pipeline" / "README.md"
    path.parent.mkdir()
    own = "\nWritten by hand.\n"
    path.write_text(card(facts()) + own, encoding="utf-8")
    for loss in (0.0971, 0.0542):
        assert add_evaluation(tmp_path, {**RESULTS, "quality": {"heldout_loss": loss}}) == [path]
        text = path.read_text(encoding="utf-8")
        assert text.count(BEGIN) == text.count(END) == text.count("### Evaluation") == 1
        assert NOT_EVALUATED not in text
        assert f"{loss}" in text
        assert "the model gives training images back" in text
        assert "| planted | 10 | 2 |" in text and "| varied captions | 5 | 0 |" in text
        assert r"2 of 10 &lt;b&gt;planted&lt;/b&gt; \| pictures" in text
        assert text.endswith(own) and LIMITS[0] in text and front(text)["base_model"] == "owner/a-model"


def test_a_card_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    assert add_evaluation(tmp_path, RESULTS) == []
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_export_has_a_card_with_the_figures_of_its_run(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-3, ema_decay=None)
    secret = {f"{number:02}.png": f"secret{number}" for number in range(24)}
    data = TextImageDataModule(
        str(write_folder(secret)), resolution=16, batch_size=4, heldout_fraction=0.34, families="off"
    )
    settings = WatchSettings(reference_timesteps=(300,), reference_draws=1, calibrate_every=2, heldout_batch=3)
    monitor = MemorizationMonitor(minimum_visits=2, false_positive_rate=0.1, settings=settings)
    trainer = fit(module, tmp_path / "run", [monitor, SampleSkipping(), PipelineExport()], data, max_steps=4)
    text = (tmp_path / "run" / "pipeline" / "README.md").read_text(encoding="utf-8")
    front(text)
    figures = json.loads((tmp_path / "run" / "records" / "calibration.json").read_text())
    assert f"| pictures flagged as memorized | {figures['pictures_flagged']} |" in text
    assert f"| training samples | {figures['samples']} |" in text
    assert "| steps | 4 |" in text and "SampleSkipping" in text
    assert "secret" not in text and str(tmp_path) not in text
    (tmp_path / "run" / LORA_FILE).write_bytes(b"")
    write_cards(trainer, module, tmp_path / "elsewhere")
    assert "load_lora_weights" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "elsewhere").exists()
