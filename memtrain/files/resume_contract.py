"""The changes that are allowed in a run that continues a checkpoint: the contract of `--ckpt_path`, in one table.

A checkpoint holds the settings of its training in plain values. They are compared with the settings of the run before
any work. Other settings are not compared, because nothing that was trained, counted or recorded depends on them.
Examples are the run's folder, the path of the data (keys identify the samples), the number of workers, logging,
validation, the places of checkpoints, and the length of the run.

- **Continues exactly**: everything is as if the run had not been interrupted. A run without any change also continues
  exactly, to the last bit on one kind of processor.
- **Continues, and says what differs**: the earlier visits, records and weights stay as they are, and each remaining
visit
  of the epoch is made once. From then on something differs from an uninterrupted run, and the log says so.
- **Refused**: the run would silently differ from its settings. One error names the setting, the checkpoint's value, the
  run's value and the remedy.

`docs/resume.md` has the table in words; `tests/files/test_resume_contract.py` compares both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memtrain.errors import ConfigurationError

BEGIN_ANEW = "set it back, or begin a new run from the trained model (model.init_args.pretrained: the run's pipeline/)"


@dataclass(frozen=True)
class Rule:
    """The consequence of one setting that differs from the checkpoint's.

    Attributes:
        differs: the difference from now on, for a run that continues; the reason, for a run that is refused.
        remedy: the remedy of a refusal; empty for a run that continues.
    """

    differs: str
    remedy: str = ""


RULES = {
    # The visits of samples (memtrain.data.visited_images).
    "resolution": Rule("the evidence and profiles are those of pictures of the other size", BEGIN_ANEW),
    "buckets": Rule("the order of visits is that of the other buckets", BEGIN_ANEW),
    "bucket_shapes": Rule(
        "the order of visits is that of other shapes, because another batch size fills other shapes",
        "set batch_size and the number of processes back until the run has ended",
    ),
    "heldout": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "heldout_fraction": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "heldout_most": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "repeats": Rule("samples have other numbers of visits per epoch", BEGIN_ANEW),
    "duplicates": Rule("other samples are planted", BEGIN_ANEW),
    "canaries": Rule("other samples are planted", BEGIN_ANEW),
    "regularisation": Rule("other regularisation images are mixed in", BEGIN_ANEW),
    "bucketed_seed": Rule("the buckets are visited in another order", BEGIN_ANEW),
    "stream_order": Rule(
        "the rest of this epoch of the stream is dealt out differently",
        "set these back until the epoch is over, or continue from a checkpoint between two epochs",
    ),
    "stream_batch_size": Rule(
        "with loader workers, the rest of this epoch of the stream is dealt out differently",
        "set batch_size back until the epoch is over, or continue from a checkpoint between two epochs",
    ),
    "batch_size": Rule("the rest of the epoch is visited in other batches"),
    "processes": Rule("the rest of the epoch is dealt out to other processes, which draw other noise"),
    "seed": Rule("the epochs after this one have another order, and captions are dropped at other visits"),
    "caption_dropout": Rule("from now on this share of captions is dropped"),
    "captions": Rule("from now on captions are chosen in this way"),
    "augment": Rule("from now on pictures are cropped and flipped in this way"),
    "exclude": Rule("from now on these samples are left out"),
    "heldout_samples": Rule(
        "from now on the threshold rests on these held-out samples, and on the earlier visits of the others"
    ),
    # The model and its training (memtrain.training.checkpoint_contents).
    "objective": Rule(
        "losses before and after would not be comparable, nor the evidence that rests on them", BEGIN_ANEW
    ),
    "optimizer": Rule("the checkpoint holds the state of another optimizer", BEGIN_ANEW),
    "optimizer_options": Rule(
        "the checkpoint holds the optimizer with its options, which would override the run's", BEGIN_ANEW
    ),
    "learning_rate": Rule(
        "the checkpoint holds the optimizer with its learning rate, which would override the run's", BEGIN_ANEW
    ),
    "ema_decay": Rule(
        "the checkpoint holds the weight average with its decay, which would override the run's", BEGIN_ANEW
    ),
    "schedule": Rule("from now on the learning rate follows the other schedule, which may be a jump"),
    "warmup_steps": Rule("from now on the learning rate follows the other schedule, which may be a jump"),
    "total_steps": Rule("from now on the learning rate is that of a run of the other length, which may be a jump"),
    "model_seed": Rule("from now on other timesteps and noise are drawn"),
    "precision": Rule("from now on the run computes in the other precision"),
    "accumulate_grad_batches": Rule("from now on a step is taken after this many batches"),
    "gradient_clip_val": Rule("from now on gradients are clipped at this value"),
    "lora_options": Rule("from now on adapters are trained in this way; their result is the same"),
    # The monitor (memtrain.monitoring.run).
    "false_positive_rate": Rule("the threshold is that of the other rate from the next calibration on"),
    "minimum_visits": Rule("samples are judged after this many visits; flagged samples stay flagged"),
    "mitigations": Rule("from now on flagged samples are treated in this way"),
}
"""The rules by setting, in the order in which they are checked."""


def plain(value: Any) -> Any:
    """Return a setting as a checkpoint holds it: numbers, text, lists and mappings only."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def check_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the settings of a checkpoint with those of the run that continues it.

    Args:
        saved: the settings of the checkpoint, in the form of :func:`plain`; settings that an earlier version did not
            save are not compared.
        now: the settings of the run.

    Returns:
        A sentence for each setting that differs.

    Raises:
        ConfigurationError: for the first difference that is not allowed.
    """
    notes = []
    for name, rule in RULES.items():
        if name not in saved or name not in now or saved[name] == plain(now[name]):
            continue
        was, is_now = (shown(value) for value in (saved[name], plain(now[name])))
        if rule.remedy:
            raise ConfigurationError(
                f"{name}: the checkpoint was trained with {was}, this run has {is_now}: {rule.differs}",
                expected=f"{name}: {was}",
                remedy=rule.remedy,
            )
        notes.append(f"{name} was {was}, and is {is_now} now: {rule.differs}")
    return notes


def shown(value: Any, *, most: int = 120) -> str:
    """Return a value for a message, on one line."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= most else f"{text[:most]}..."
