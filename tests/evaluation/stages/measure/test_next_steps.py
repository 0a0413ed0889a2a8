"""What to do next: each reason has a command, and each command stands once."""

from __future__ import annotations

from memtrain.evaluation.stages.measure.next_steps import next_steps


def test_reasons_have_commands_and_no_command_stands_twice() -> None:
    reasons = [{"reason": name} for name in ("few_heldout", "may_be_copies", "may_be_copies", "samples_alike")]
    commands = [command for _, command in next_steps({"reasons": reasons})]
    assert len(commands) == len(set(commands)) == 5
    for piece in ("heldout_path FOLDER", "memtrain scan DATA", "exclude.csv", "--images_per_prompt 8"):
        assert any(piece in command for command in commands)
    audited = [command for _, command in next_steps({"reasons": reasons}, audit=True)]
    assert not any("--run" in command for command in audited) and any("--model MODEL" in one for one in audited)
    assert next_steps({}) == [] and next_steps({"reasons": None}) == []
