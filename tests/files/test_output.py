"""Printing never ends a run."""

import subprocess
import sys

TEXT = "print('\u8d64\u3044\u72d0')"


def run(code: str, *, encoding: str, then: str = "") -> subprocess.CompletedProcess[str]:
    words = f"from memtrain.files.output import careful_output, harmless_output\n{code}"
    command = f'{sys.executable} -c "$CODE" {then}'
    env = {"PYTHONIOENCODING": encoding, "CODE": words, "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)


def test_characters_that_the_output_lacks_are_written_out() -> None:
    assert "UnicodeEncodeError" in run(TEXT, encoding="cp1252").stderr, "without it"
    assert run(f"careful_output()\n{TEXT}", encoding="cp1252").stdout.strip() == r"\u8d64\u3044\u72d0"
    assert run(f"careful_output()\n{TEXT}", encoding="utf-8").stdout.strip() == "\u8d64\u3044\u72d0"


def test_a_closed_pipe_and_a_full_disk_end_nothing() -> None:
    code = "with harmless_output():\n  for _ in range(10**5): print(_)\nimport sys\nprint('done', file=sys.stderr)"
    for place in ("| head -1", "> /dev/full"):
        assert "done" in run(code, encoding="utf-8", then=place).stderr, place


def test_printing_is_given_up_when_nobody_takes_it() -> None:
    code = "careful_output()\nfor _ in range(10**5): print(_)\nimport sys\nprint('done', file=sys.stderr)"
    for place in ("| head -1", "> /dev/full", ">&-"):
        found = run(code, encoding="utf-8", then=place)
        assert "done" in found.stderr and "Traceback" not in found.stderr, place


def test_help_into_a_closed_pipe_ends_quietly_and_a_full_disk_is_told() -> None:
    code = "careful_output()\nfrom memtrain.files.output import print_or_exit\nprint_or_exit('x' * 10**6)"
    for place, said, status in (("| true", "", 0), (">&-", "", 0), ("> /dev/full", "could not be written", 1)):
        found = run(code, encoding="utf-8", then=f"{place}; exit ${{PIPESTATUS[0]}}")
        assert (said in found.stderr, found.returncode) == (True, status), place
        assert "Traceback" not in found.stderr and "files hold" not in found.stderr
