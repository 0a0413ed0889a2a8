"""What a run that continues a checkpoint may have changed: the contract of `--ckpt_path`, in one table.

A checkpoint says, in plain values, with which settings it was trained. Before any work, these are compared with the
run's own. Whatever is not below is not compared, because nothing of what was trained, counted or recorded rests on it:
the run's folder, the path of the data (samples are known by their keys), the number of workers, logging, validation,
where checkpoints are written, how long the run is.

- **Continues exactly**: everything is as if the run had not been interrupted. So does a run in which nothing changed,
  to the last bit on one kind of processor.
- **Continues, and says what differs**: what was visited, recorded and learnt so far stays as it is, and what is left of
  the epoch is visited once each; from then on something is otherwise than it would have been, which is logged.
- **Refused**: the run would be silently something else than its settings say. One error names the setting, the
  checkpoint's value and the run's, and the remedy.

`docs/resume.md` has the table in words; `tests/files/test_resume_contract.py` holds both together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memtrain.errors import ConfigurationError

BEGIN_ANEW = "set it back; or begin a new run on what was trained (model.init_args.pretrained: the run's pipeline/)"


@dataclass(frozen=True)
class Rule:
    """What becomes of a run in which one setting is another than in its checkpoint.

    Attributes:
        differs: what is otherwise from here on, where it continues; why not, where it is refused.
        remedy: what to do where it is refused; empty where it continues.
    """

    differs: str
    remedy: str = ""


RULES = {
    # How samples are visited (memtrain.data.visited_images).
    "resolution": Rule("the evidence and profiles are of pictures of the other size", BEGIN_ANEW),
    "buckets": Rule("the order of visits is that of the other buckets", BEGIN_ANEW),
    "bucket_shapes": Rule(
        "the order of visits is that of other shapes, because another batch size fills others",
        "set batch_size and the number of processes back until the run has ended",
    ),
    "heldout": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "heldout_fraction": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "heldout_most": Rule("samples that were trained on would be held out, or the other way round", BEGIN_ANEW),
    "repeats": Rule("samples have other numbers of visits per epoch", BEGIN_ANEW),
    "duplicates": Rule("other samples are planted", BEGIN_ANEW),
    "canaries": Rule("other samples are planted", BEGIN_ANEW),
    "regularisation": Rule("other regularisation images are mixed in", BEGIN_ANEW),
    "bucketed_seed": Rule("the order in which buckets are visited is another", BEGIN_ANEW),
    "stream_order": Rule(
        "the rest of this epoch of the stream is dealt out otherwise",
        "set these back until the epoch is over, or continue from a checkpoint between two epochs",
    ),
    "stream_batch_size": Rule(
        "with loader workers, the rest of this epoch of the stream is dealt out otherwise",
        "set batch_size back until the epoch is over, or continue from a checkpoint between two epochs",
    ),
    "batch_size": Rule("what is left of the epoch is visited in other batches"),
    "processes": Rule("what is left of the epoch is dealt out to other processes, which draw other noise"),
    "seed": Rule("the epochs after this one have another order, and captions are dropped at other visits"),
    "caption_dropout": Rule("from here on that share of captions is dropped"),
    "captions": Rule("from here on captions are chosen so"),
    "augment": Rule("from here on pictures are cropped and flipped so"),
    "exclude": Rule("from here on they are left out"),
    "heldout_samples": Rule(
        "from here on the threshold rests on these held-out samples, and on what others showed before"
    ),
    # What is trained (memtrain.training.checkpoint_contents).
    "objective": Rule(
        "losses before and after would not be comparable, nor the evidence that rests on them", BEGIN_ANEW
    ),
    "optimizer": Rule("the optimizer's state in the checkpoint is another optimizer's", BEGIN_ANEW),
    "optimizer_options": Rule("the checkpoint holds the optimizer with its options, which would prevail", BEGIN_ANEW),
    "learning_rate": Rule("the checkpoint holds the optimizer with its learning rate, which would prevail", BEGIN_ANEW),
    "ema_decay": Rule("the checkpoint holds the weight average with its decay, which would prevail", BEGIN_ANEW),
    "schedule": Rule("from here on the learning rate follows the other schedule, which may be a jump"),
    "warmup_steps": Rule("from here on the learning rate follows the other schedule, which may be a jump"),
    "total_steps": Rule("from here on the learning rate is that of a run of the other length, which may be a jump"),
    "model_seed": Rule("from here on other timesteps and noise are drawn"),
    "precision": Rule("from here on it is computed in the other precision"),
    "accumulate_grad_batches": Rule("from here on a step is taken after that many batches"),
    "gradient_clip_val": Rule("from here on gradients are clipped there"),
    "lora_options": Rule("from here on adapters are trained so; what they compute is the same"),
    # What is watched (memtrain.monitoring.run).
    "false_positive_rate": Rule("the threshold is that of the other rate from the next calibration on"),
    "minimum_visits": Rule("samples are judged from that many visits on; who was flagged stays flagged"),
    "mitigations": Rule("from here on flagged samples are treated so"),
}
"""By setting, in the order in which they are looked at."""


def plain(value: Any) -> Any:
    """A setting as a checkpoint holds it: numbers, text, lists and mappings alone."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def check_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the settings of a checkpoint with those of the run that continues it.

    Args:
        saved: of the checkpoint, as :func:`plain` made them. What an earlier version did not save is not compared.
        now: of the run.

    Returns:
        A sentence for each setting that differs.

    Raises:
        ConfigurationError: for the first that may not.
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
    """A value in a message, on one line."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= most else f"{text[:most]}..."
