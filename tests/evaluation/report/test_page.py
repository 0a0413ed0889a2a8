"""The report: escaping, nothing external, the same file every time, and what is shown."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from memtrain.errors import RecordError
from memtrain.evaluation.report.page import write_page
from memtrain.evaluation.report.section import Section, paragraph
from memtrain.evaluation.stages.base import write_report

ATTACK = "<script>alert('x')</script>\" onerror=\"alert(1) & $\\frac$"
MADE = {"created": "2024-01-01T00:00:00Z", "versions": {"memtrain": "0"}, "model": "a model"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def group(n: int, k: int) -> dict[str, Any]:
    """A group of `results.json`."""
    ratio = {"min": 0.1, "median": 0.5, "max": 1.0}
    return {
        "n": n,
        "reproduced": k,
        "share": k / n,
        "interval": [0.0, 0.5],
        "share_of_images": 0.25,
        "best_ratio": ratio,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of one hostile planted prompt and thirty held-out ones, each with five seeds; 400-pixel images."""
    results = {
        "schema_version": 2,
        "created": "2024-01-01T00:00:00Z",
        "versions": {"memtrain": "0", "torch": "2"},
        "config": {"name": ATTACK},
        "sampling": {"seeds": [0, 1, 2, 3, 4], "steps": 5, "guidance_scale": 4.0, "scheduler": ATTACK, "images": 155},
        "statistics": {"seed": 0, "resamples": 10, "level": 0.95},
        "verdict": {"level": "reproduces", "text": "1 of 1 " + ATTACK},
        "replication": {
            "threshold": 0.6,
            "false_positive_rate": 0.05,
            "n_heldout": 30,
            "neighbours": 50,
            "n_training_images": 100,
            "groups": {"planted": group(1, 1), "heldout": group(30, 0), ATTACK: group(1, 0)},
        },
        "detectors": {
            ATTACK: {
                "higher_means_memorized": True,
                "cost": "none",
                "comparisons": {
                    "planted_vs_heldout": {
                        "positives": 1,
                        "negatives": 30,
                        "auroc": 0.987,
                        "interval": [0.9, 1.0],
                        "true_positive_rate": 1.0,
                        "false_positive_rate": 0.05,
                    }
                },
            }
        },
        "training": {
            "planted": 1,
            "unique": 9,
            "signals": [
                {
                    "column": ATTACK,
                    "auroc": 0.9,
                    "interval": [0.8, 1.0],
                    "true_positive_rate": 0.5,
                    "false_positive_rate": 0.01,
                    "declared": "unknown",
                    "observed": "low",
                }
            ],
            "flags": {
                "planted_flagged": 1,
                "planted_missed": 0,
                "unique_flagged": 0,
                "unique_not_flagged": 9,
                "precision": {"k": 1, "n": 1, "share": 1.0, "interval": [0.2, 1.0]},
                "recall": {"k": 1, "n": 1, "share": 1.0, "interval": [0.2, 1.0]},
                "false_positive_rate": {"k": 0, "n": 0, "share": None, "interval": [0.0, 1.0]},
                "first_flagged_step": {"min": 7, "median": 7, "max": 7},
            },
            "sampled": {"flagged": {"n": 1, "reproduced": 1}, "not_flagged": {"n": 0, "reproduced": 0}},
            "skipped": {"planted": 0.5, "unique": None},
        },
        "quality": {"heldout_loss": 0.1234},
    }
    keys = ["planted-" + ATTACK, *(f"held-{index}" for index in range(30)), "mine"]
    groups = ["planted", *["heldout"] * 30, ATTACK]
    rows = [
        {
            "key": key,
            "group": name,
            "caption": f"{ATTACK} {key}",
            "seed": seed,
            "ratio": (0.5 if name == "planted" and seed != 2 else 0.9) + 0.01 * index,
            "nearest_key": key if seed else "elsewhere " + ATTACK,
            "reproduced": name == "planted" and seed != 2,
            "image": "image.png",
            "own_image": "image.png",
            "training.flagged": None if name == "heldout" else True,
            "training.first_flagged_step": None if name == "heldout" else 7,
        }
        for index, (key, name) in enumerate(zip(keys, groups, strict=True))
        for seed in range(5)
    ]
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "samples.parquet")
    Image.fromarray(np.zeros((400, 300, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    return tmp_path


def parsed(folder: Path) -> tuple[str, Tags]:
    """The text and its tags."""
    text = write_report(folder).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return text, tags


def test_hostile_text_is_escaped_wherever_it_appears(folder: Path) -> None:
    """In captions, keys, groups, names, the verdict and the configuration, as text and inside attributes."""
    text, tags = parsed(folder)
    assert "script" not in {tag for tag, _ in tags.seen}
    assert not [attributes for _, attributes in tags.seen if any(name.startswith("on") for name in attributes)]
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20


def test_nothing_is_fetched(folder: Path) -> None:
    """Every image is inside the file, and nothing else is referred to."""
    text, tags = parsed(folder)
    links = ("src", "href", "xlink:href")
    sources = [value or "" for _, attributes in tags.seen for name, value in attributes.items() if name in links]
    assert sum(source.startswith("data:image/png;base64,") for source in sources) > 10
    inside = {source[1:] for source in sources if not source.startswith("data:image/png;base64,")}
    names = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert inside <= set(names) and len(set(names)) == len(names), (
        "links lead to a place on the page, each with one name"
    )
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_what_is_shown(folder: Path) -> None:
    """The best four of five seeds, six of thirty held-out prompts, reproductions framed, large images made smaller."""
    text, tags = parsed(folder)
    classes = [attributes.get("class") for tag, attributes in tags.seen if tag == "figure"]
    assert classes.count("own") == 2 + 1 + 6 + 1, "the worst of what was trained on first, then all groups"
    assert classes.count("chart") == 1
    assert len(classes) == 5 * 10 + 1
    assert classes.count("copy") == 2 * 4
    assert "6 of 30 prompts" in text
    assert "flagged in training from step 7" in text
    assert len(text) < 400_000
    for section in (
        "Flags and signals during training",
        "Detectors",
        "Limits of the evaluation",
        "0.987",
        "0.1234",
        "0.600",
    ):
        assert section in text


def test_templates_and_doses_are_shown(folder: Path) -> None:
    """The groups by their words, what n means, the doses, the flags; ↗ only where the image is no variant."""
    assert "By repetitions" not in parsed(folder)[0]
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    groups = content["replication"]["groups"]
    groups["varied_captions"] = {**group(2, 1), "looks": 2.0}
    content["replication"]["doses"] = [{"repeats": 12, "n": 4, "reproduced": 3, "share": 0.75, "interval": [0.3, 0.95]}]
    content["training"]["flags"]["groups"] = {"varied_captions": {"k": 13, "n": 20, "share": 0.65, "interval": [0, 1]}}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    own = {"picture_family": "key", "caption_family": "key"}
    nearest = {"nearest_picture_family": "nearest_key", "nearest_caption_family": "nearest_key"}
    rows = [{**row, **{name: row[source] for name, source in (own | nearest).items()}} for row in rows]
    arrows = parsed(folder)[0].count("↗</span>")
    made = {**rows[0], "group": "varied_captions", "key": "a#caption0", "picture_family": "a", "caption_family": "s"}
    rows += [{**made, "seed": 0, "nearest_key": "a#caption4", "nearest_picture_family": "a"}]
    rows += [{**made, "seed": 1, "nearest_key": "b", "nearest_picture_family": "b"}]
    rows += [{**made, "seed": 2, "nearest_key": "c", "nearest_picture_family": "c", "nearest_caption_family": "s"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    text, _ = parsed(folder)
    assert text.count("↗</span>") == arrows + 1
    for piece in ("By repetitions", "75%", "<h3>varied captions</h3>", "2.0 (varied captions)", ">13<", ">7<"):
        assert piece in text, piece
    assert "varied_captions" not in text


def test_report_is_a_function_of_its_files(folder: Path) -> None:
    """Made again, it is the same to the byte."""
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_incomplete_evaluation_is_refused(tmp_path: Path) -> None:
    """Naming the folder, or the file that is missing beside the others."""
    with pytest.raises(RecordError, match="holds no results"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RecordError, match=r"samples\.parquet does not exist"):
        write_report(tmp_path)


def test_a_model_without_a_run_has_a_report_too(tmp_path: Path) -> None:
    """Made of whatever is there, without the parts of `measure`."""
    threshold = {"value": 0.5, "mean": 0.25, "std": 0.25, "deviations": 1.0, "count": 3}
    results = {**MADE, "threshold": threshold, "statistics": {"prompts": 3, "layers": 2, "neurons": 32}}
    (tmp_path / "calibration.json").write_text(json.dumps(results), encoding="utf-8")
    text, _ = parsed(tmp_path)
    assert "Calibration of the neuron search" in text and "0.500" in text and "a model" in text
    assert "Limits of the evaluation" not in text and "<pre>" not in text
    answer = re.search(r'<div class="verdict plain">(.*?)</div>', text, flags=re.DOTALL)
    assert answer is not None and "The threshold of the similarity between seeds is 0.500" in answer[1], (
        "its first words"
    )


def test_what_other_stages_left_is_shown(folder: Path) -> None:
    write_report(folder)
    before = (folder / "report.html").read_text(encoding="utf-8")
    assert "Mitigation while sampling" not in before and "Attention to text" not in before
    mean = {"mean": 0.25, "interval": [0.2, 0.3]}
    share = {"k": 1, "n": 2, "share": 0.5, "interval": [0.1, 0.9]}
    condition = {"reproduced": share, "reproduced_images": mean, "diversity": mean, "fidelity": mean}
    change = {"reproduced": {"stopped": 1, "started": 0}, "diversity": mean, "fidelity": mean}
    mitigation = {
        **MADE,
        "mitigation": ATTACK,
        "sampling": {"seeds": [0, 1], "steps": 2, "guidance_scale": 4.0},
        "reproduction": {"threshold": 0.5, "false_positive_rate": 0.05, "n_others": 19},
        "fidelity": {"measure": "retrieved", "judge": ATTACK, "others": 4, "chance": 0.2},
        "distance_between_prompts": 0.4,
        "groups": {
            ATTACK: {
                "prompts": 2,
                "without": condition,
                "with": condition,
                "change": change,
                "distance_to_unmitigated": mean,
            }
        },
    }
    (folder / "mitigation.json").write_text(json.dumps(mitigation), encoding="utf-8")
    (folder / "attention").mkdir()
    entropy = {ATTACK: {"prompts": 2, "all_tokens": mean, "eos_and_padding": {"mean": 0.5, "interval": None}}}
    pictures = ["entropy.png", "prompt-0000.png"]
    attention = {**MADE, "entropy": entropy, "pictures": pictures}
    (folder / "attention" / "attention.json").write_text(json.dumps(attention), encoding="utf-8")
    for name in ("mitigation.png", "attention/entropy.png", "attention/prompt-0000.png"):
        (folder / name).write_bytes((folder / "image.png").read_bytes())
    write_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert not tags.open and not any(tag == "script" for tag, _ in tags.seen)
    assert html.count("<img") == before.count("<img") + 3
    assert "1 of 2 (10% to 90%)" in html and "1 stopped, 0 started" in html and "0.250 (0.200 to 0.300)" in html


def test_what_the_stage_detect_left_is_shown(folder: Path) -> None:
    rate = {"strict": 0.25, "nearest": 0.75}
    figures = {"auroc": 0.875, "interval": [0.5, 1.0], "true_positive_rates": [rate, rate], "notes": [ATTACK]}
    results = {
        **MADE,
        "sampling": {"seeds": [0], "steps": 2, "guidance_scale": 4.0},
        "prompts": 12,
        "prompt_length": figures,
        "combined": {"auroc": None, "reason": "too few prompts"},
        "detectors": {ATTACK: {**figures, "denoiser_calls": 80, "higher_means_memorized": False}},
        "left_out": {"tile_l2": ATTACK},
    }
    rows = [{"prompt": f"{ATTACK} {score}", "memorized": None, ATTACK: score} for score in (0.75, 0.0625)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    for truth, shown in ((None, False), (figures, True)):
        (folder / "detection.json").write_text(json.dumps({**results, "prompt_length": truth}), encoding="utf-8")
        html = write_report(folder).read_text(encoding="utf-8")
        assert "Detection of memorized prompts" in html
        assert ("0.25/0.75" in html) is shown
        assert ("Scores depend on model, guidance and steps" in html) is not shown
    assert html.index(">0.0625<") < html.index(">0.75<"), "the most suspicious first: low here"
    assert "Left out: tile_l2." in html
    tags = Tags()
    tags.feed(html)
    assert not tags.open and not any(tag == "script" for tag, _ in tags.seen)
    assert "12 prompts" in html and "0.875" in html and "0.25/0.75" in html and ">80<" in html
    assert "combined is not measured: too few prompts." in html


def test_what_the_stage_localize_left_is_shown(folder: Path) -> None:
    def share(k: int, n: int) -> dict[str, Any]:
        return {"k": k, "n": n, "share": k / n, "interval": [0.0, 1.0]}

    assert "Neuron masking" not in write_report(folder).read_text(encoding="utf-8")
    asked = {"n": 7, "reproduced": share(5, 7), "best_ratio": {"median": 0.375}}
    results = {
        **MADE,
        "verdict": {"level": "trigger_suppression", "text": ATTACK + " suppressed"},
        "located": {"asked": share(6, 7), "false_alarms": share(1, 9)},
        "heldout_loss": {"change": 0.0125, "interval": [0.01, 0.02]},
        "conditions": {"masked": {"asked": asked}, "unmasked + re-trigger": {"controls": asked}},
    }
    (folder / "localization.json").write_text(json.dumps(results))
    Image.new("RGB", (30, 20), (1, 2, 3)).save(folder / "localization.png")
    text = write_report(folder).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert ATTACK not in text
    for part in (
        "Neuron masking",
        "found neurons for 6 of 7 prompts",
        "1 of 9 prompts",
        "1.25%",
        "5 of 7 (0% to 100%)",
        "0.38",
    ):
        assert part in text, part
    assert text.index("asked (7)") < text.index("controls (7)")
    assert (
        sum(attributes.get("alt", "").startswith("Own images, and") for tag, attributes in tags.seen if tag == "img")
        == 1
    )


def test_an_interval_that_is_not_known_is_said_to_be(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    kid = {"value": 0.0217, "standard_error": None, "interval": None, "n_generated": 4, "n_real": 2, "features": "net"}
    results["quality"]["kid"] = kid
    (folder / "results.json").write_text(json.dumps(results))
    none = {"k": 0, "n": 0, "share": None, "interval": [0.0, 1.0]}
    located = {
        "verdict": {"level": "nothing_located", "text": "nothing"},
        "located": {"asked": none, "false_alarms": none},
        "heldout_loss": {"n": 1, "change": 0.0125, "interval": None},
        "conditions": {"unmasked": {"asked": {"n": 1}}},
        **{name: results[name] for name in ("created", "versions") if name in results},
    }
    (folder / "localization.json").write_text(json.dumps(located))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "0.0217" in text
    assert "too few prompts for an interval" in text
    assert "from one image, so without an interval" in text


def test_nothing_in_a_page_acts(tmp_path: Path) -> None:
    """Escape sequences of whoever prints it, marks that turn the order of text, and what cannot be encoded."""
    said = "a\x1b]0;t\x07\u202egnp.exe\ud800 <b>क्\u200dष"
    section = Section(title=said, body=paragraph(said))
    write_page(tmp_path, [section])
    for name, end in (("report.html", "&lt;b&gt;क्\u200dष"), ("results.md", "क्\u200dष")):
        text = (tmp_path / name).read_bytes().decode()
        assert not {"\x1b", "\x07", "\u202e"} & set(text) and end in text
