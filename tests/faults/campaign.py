"""Kill commands at random moments, give them again until they are done, and compare with what they leave undisturbed.

`python -m tests.faults.campaign --kills 50 --seed 0 --json FILE` starts `train`, `scan`, `detect`, `measure`,
`mitigate` and `localize` in turn, each in a folder of its own; ends each one to four times with SIGKILL, at a moment
drawn evenly from the time it takes; gives the same command again (training with `--ckpt_path last`); and lets it come
to its end. At the end stand the kills by command, rows lost and doubled, and whether weights and results equal the
undisturbed run's, bit for bit. A campaign that is ended itself goes on when the same command is given again. The exit
status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtrain.records import write_json
from tests.faults.commands import CALIBRATE, COMMANDS, Command, chosen, finish, prepare, start, warm
from tests.faults.outcome import Outcome, outcome

MOST_KILLS = 4
"""Of one command, before it may come to its end."""


def uninterrupted(base: Path, names: Sequence[str]) -> dict[str, tuple[float, Outcome]]:
    """What each command leaves when nobody kills it, and how long it takes; made once for a folder."""
    if not (base / "prompts.csv").is_file():
        prepare(base)
    _uninterrupted(CALIBRATE, base, "localize" in names)
    needed = {*names, *(["train"] if "measure" in names else [])}
    found = {one.name: _uninterrupted(one, base, True) for one in COMMANDS if one.name in needed}
    return {name: (seconds, outcome(base / "reference" / name / "out")) for name, seconds in found.items()}


def _uninterrupted(command: Command, base: Path, wanted: bool) -> float:
    folder = base / "reference" / command.name
    done = folder / "seconds.json"
    if wanted and not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        if (status := finish(start(command, folder, base=base, again=False), kill_after=None)) != 0:
            sys.exit(f"{command.name} ends with {status} undisturbed; see {folder / 'log.txt'}")
        write_json({"seconds": time.monotonic() - began}, done)
    return float(json.loads(done.read_text(encoding="utf-8"))["seconds"]) if wanted else 0.0


def one_case(case: int, seed: int, *, base: Path, left: int, reference: dict[str, tuple[float, Outcome]]) -> Any:
    """Kill a command a few times, let it end, and compare.

    Args:
        case: its number.
        seed: of the campaign.
        base: the folder of the campaign.
        left: kills at most.
        reference: from :func:`uninterrupted`.
    """
    command, draw = chosen(seed, case)
    seconds, expected = reference[command.name]
    folder = base / "cases" / f"{case:03d}-{command.name}"
    shutil.rmtree(folder, ignore_errors=True)
    kills: list[float] = []
    status = None
    for _ in range(min(left, draw.randint(1, MOST_KILLS))):
        moment = draw.uniform(0, seconds)
        status = finish(start(command, folder, base=base, again=folder.exists()), kill_after=moment)
        if status is not None:
            break
        kills.append(round(moment, 2))
    if status is None:
        status = finish(start(command, folder, base=base, again=True), kill_after=None)
    result: dict[str, Any] = {"case": case, "command": command.name, "killed_after": kills, "status": status}
    try:
        result |= outcome(folder / command.results).against(expected)
    except Exception as error:
        result["torn"] = f"{type(error).__name__}: {error}"
    result["equal"] = status == 0 and not any(
        result.get(name) for name in ("torn", "rows_lost", "rows_doubled", "weights_differ", "files_differ")
    )
    if result["equal"]:
        shutil.rmtree(folder)
    return result


def campaign(base: Path, *, kills: int, seed: int, path: Path) -> dict[str, Any]:
    """All cases until there were as many kills; what is done is not done again."""
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = said.get("seed") == seed
    cases: list[Any] = list(said.get("cases", [])) if same else []
    if cases and _kills(cases) >= kills:
        return dict(said)
    warm()
    reference = uninterrupted(base, [command.name for command in COMMANDS])
    while (done := _kills(cases)) < kills:
        cases.append(one_case(len(cases), seed, base=base, left=kills - done, reference=reference))
        print(_line(cases[-1]), flush=True)
        write_json(_summary(seed, cases, reference), path)
    return write_json(_summary(seed, cases, reference), path)


def _kills(cases: Sequence[Any]) -> int:
    return sum(len(case["killed_after"]) for case in cases)


def _summary(seed: int, cases: list[Any], reference: dict[str, tuple[float, Outcome]]) -> dict[str, Any]:
    by_command = {}
    for name, (seconds, _) in reference.items():
        own = [case for case in cases if case["command"] == name]
        by_command[name] = {
            "kills": _kills(own),
            "cases": len(own),
            "rows_lost": sum(case.get("rows_lost", 0) for case in own),
            "rows_doubled": sum(case.get("rows_doubled", 0) for case in own),
            "equal": sum(case["equal"] for case in own),
            "seconds_undisturbed": round(seconds, 1),
        }
    counts = ("kills", "cases", "rows_lost", "rows_doubled")
    total = {count: sum(row[count] for row in by_command.values()) for count in counts}
    return {
        "seed": seed,
        **total,
        "all_equal": all(case["equal"] for case in cases),
        "commands": by_command,
        "cases": cases,
    }


def _line(case: Any) -> str:
    wrong = "" if case["equal"] else f"; {json.dumps({k: v for k, v in case.items() if k not in ('case', 'equal')})}"
    moments = ", ".join(f"{moment:.1f} s" for moment in case["killed_after"]) or "no kill"
    return f"{case['case']:3d} {case['command']:9s} {moments}: {'equal' if case['equal'] else 'DIFFERS'}{wrong}"


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/faults/faults.json"), help="where the figures go")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="where the commands work")
    options = parser.parse_args(words)
    found = campaign(options.folder.resolve(), kills=options.kills, seed=options.seed, path=options.json.resolve())
    for name, row in found["commands"].items():
        print(f"{name:9s} {row['kills']:3d} kills, {row['equal']} of {row['cases']} equal to the uninterrupted run")
    print(
        f"{found['kills']} kills: {found['rows_lost']} rows lost, {found['rows_doubled']} doubled; weights and results "
        f"{'equal the uninterrupted run' if found['all_equal'] else 'DIFFER from the uninterrupted run'}'s bit for bit"
    )
    return 0 if found["all_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
