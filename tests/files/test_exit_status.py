"""The exit statuses stand in one table, which is documented and printed."""

import re

from memtrain.cli.help.overview import overview
from memtrain.evaluation.stages.measure import fail_on
from memtrain.files.exit_status import MEANING, ExitStatus, by_signal, table, written

from ..conftest import ROOT


def test_the_page_and_the_overview_list_every_status() -> None:
    page = (ROOT / "docs" / "how_do_i" / "use_in_a_pipeline.md").read_text()
    listed = re.findall(r"^\| ([0-9]+(?: \+ n)?) \|", page, flags=re.MULTILINE)
    assert [one.replace(" ", "") for one in listed] == [written(status) for status in ExitStatus]
    assert set(MEANING) == set(ExitStatus)
    assert overview().endswith("\n".join(table()))


def test_the_numbers_are_what_scripts_go_by() -> None:
    assert [int(status) for status in ExitStatus] == [0, 1, 2, 3, 4, 128]
    assert (fail_on.REPRODUCED, fail_on.UNJUDGED) == (3, 4)
    assert by_signal(15) == 143
