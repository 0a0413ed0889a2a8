"""The command `detect`: scores of prompts, and what each score means, for any pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import PromptStage, SamplingOptions, StageInput
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors, refuse_none
from memtrain.evaluation.stages.detect.against_null import Null
from memtrain.evaluation.stages.detect.p_values import FEWEST, suggested_count
from memtrain.evaluation.stages.offload_option import OffloadOption
from memtrain.evaluation.stages.prompts import PromptToScore, known_truth, prompts_read, read_prompts
from memtrain.evaluation.stages.shards import ShardOptions, read_shard
from memtrain.files.prompt_file import SUFFIXES, kind_of

AUTO, NONE = "auto", "none"
FEWEST_NULL = 99
"""Null prompts that a p-value of 0.01 needs; fewer are taken only if the command names them."""
LEAST = 19
"""Null prompts without which no p-value is as small as 0.05."""


@dataclass(frozen=True, kw_only=True)
class Detect(SamplingOptions, OffloadOption, ShardOptions, PromptStage):
    """Score prompts for memorization, without any training image, and say how unlikely each score is.

    Args:
        detectors: `suggested`, `all` for every detector that can read the pipeline, or a list of class paths with their
            arguments. `suggested` is a choice of cheap detectors: GuidanceNorm and MemAttn of one step and of all
            steps, and NoiseSimilarity. GuidanceNorm measures how far the prompt pulls the prediction, and MemAttn how
            the attention is spread over the words. NoiseSimilarity measures whether different noise leads to one image,
            and Anisotropy whether the prediction turns one way. DenoisingConfidence measures how clear the image is
            after one step, and Sharpness how steep the model is. BrightEnding measures where the attention to the end
            of the prompt lies. TileL2 measures whether images of several seeds agree in every tile, and
            EdgeConsistency whether they share edges. `--detectors.help NAME` lists the arguments of a detector.
        null: prompts that the model cannot have seen. Each prompt is compared with them for its p-value. The value is
            a number of prompts to make from the words of the prompts, a file of your own (as for `prompts`), or `none`.
            `auto` makes 20 for each prompt, but at least 199 and at most 999, and scores them by the detectors that
            need one call of the denoiser. If it is known which prompts are memorized, `auto` makes none. Null prompts
            are scored once for a model and its settings, and their scores are kept in the output folder.
    """

    detectors: Literal["suggested", "all"] | list[Detector] = "suggested"
    null: int | str = AUTO

    def check(self) -> None:
        """Refuse a wrong part, an empty list of detectors, and a wrong value of `null`."""
        super().check()
        read_shard(self.shard)
        refuse_none(self.detectors)
        if isinstance(self.null, int):
            if self.null < LEAST:
                raise ConfigurationError(
                    f"null={self.null} prompts: no p-value could be as small as 0.05",
                    expected=f"at least {LEAST}; {FEWEST} or more are better",
                    remedy="give a larger number, or --null none",
                )
        elif self.null not in (AUTO, NONE) and kind_of(Path(self.null)) is None:
            raise ConfigurationError(
                f"null={self.null!r} is neither a number nor a file of prompts",
                expected=f"a number, auto, none, or a file ({', '.join(SUFFIXES)})",
                remedy="correct --null",
            )

    def check_prompts(self, prompts: Sequence[PromptToScore]) -> None:
        """Refuse a file of null prompts that holds too few prompts that are not scored."""
        if isinstance(self.null, int) or self.null in (AUTO, NONE):
            return
        print(prompts_read(str(self.null)).line())
        own = len(self.own_null(prompts))
        if own < LEAST:
            raise ConfigurationError(
                f"{self.null} holds {own} prompts that are not scored: no p-value could be as small as 0.05",
                expected=f"at least {LEAST} different prompts that the model cannot have seen",
                remedy="add prompts, or let the command make them with --null auto",
            )

    def own_null(self, prompts: Sequence[PromptToScore]) -> list[str]:
        """The prompts of the file that `null` names, without the prompts that are scored."""
        asked = {prompt.text for prompt in prompts}
        return [text for text in dict.fromkeys(one.text for one in read_prompts(str(self.null))) if text not in asked]

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Score, and print the most suspicious prompts."""
        import pyarrow.parquet as pq

        from memtrain.evaluation.stages.detect.detect import detect
        from memtrain.evaluation.stages.detect.screen import print_detection

        shard = read_shard(self.shard)
        detectors, left_out = chosen_detectors(self.detectors, given.pipeline, given.sampling)
        for name, reason in left_out.items():
            print(f"Left out: {name}. {reason}")
        null = self.null_of(given, detectors)
        if null is not None:
            print(
                f"For p-values, the command also scores {len(null.texts)} prompts that the model cannot have seen "
                "(--null none leaves them out)."
            )
        results = detect(given, detectors, null=null, shard=shard, left_out=left_out)
        merges = shard is None or shard.merges
        if results is None:
            writer = "the last process to finish" if merges else "the job that waits for all parts"
            print(
                f"Part {shard} of the prompts is scored, and other parts are not. The results go to {given.output}, "
                f"written by {writer}. If no process writes them, run this command again with --shard merge."
            )
            return {}
        print_detection(results, pq.read_table(given.output / "prompts.parquet"), given.output)
        return results

    def null_of(self, given: StageInput, detectors: Sequence[Detector]) -> Null | None:
        """The null prompts and the detectors that score them; None if there are no p-values."""
        from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
        from memtrain.evaluation.stages.null_prompts import framed_null_prompts, null_prompts

        if self.null == NONE or (self.null == AUTO and known_truth(given.prompts) is not None):
            return None
        texts = list(dict.fromkeys(prompt.text for prompt in given.prompts))
        if isinstance(self.null, str) and self.null != AUTO:
            return Null(texts=self.own_null(given.prompts), made=False, detectors=detectors)
        count, chosen = self.null, list(detectors)
        if isinstance(count, str):
            one_call = [detector for detector in detectors if detector.calls(given.sampling.steps) == 1]
            count, chosen = suggested_count(len(texts)), one_call or chosen

        def tokens(many: Sequence[str]) -> list[int]:
            return prompt_lengths(given.pipeline, many).tolist()

        if self.null != AUTO:
            return Null(texts=null_prompts(texts, count, lengths=tokens), made=True, detectors=chosen)
        made = [text for text, _ in framed_null_prompts(texts, count, lengths=tokens)]
        if len(made) < FEWEST_NULL:
            print(
                f"There are no p-values: the words of these prompts give {len(made)} prompts to compare with, and "
                f"{FEWEST_NULL} are needed. Name a file of prompts that the model cannot have seen with --null FILE."
            )
            return None
        return Null(texts=made, made=True, detectors=chosen)
