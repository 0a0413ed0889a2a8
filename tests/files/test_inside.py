"""Names that files hold stay inside the folder they are meant for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import DataError
from memtrain.files.inside import below, inside, safe_name

OUTSIDE = ("..", "../a", "a/../../b", "/etc/passwd", "C:\\a", "..\\a", "a\0b")


@pytest.mark.parametrize("name", [*OUTSIDE, "", 3, None])
def test_names_that_lead_out_of_a_folder_of_results(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match=r"results\.json: image is"):
        below(tmp_path, name, "results.json: image")


def test_links_are_their_owners_in_results_and_refused_in_data(tmp_path: Path) -> None:
    folder, other = tmp_path / "results", tmp_path / "scratch"
    folder.mkdir()
    other.mkdir()
    (folder / "images").symlink_to(other)
    assert below(folder, "images/a.png", "image") == folder / "images" / "a.png"
    with pytest.raises(DataError, match="points outside the folder"):
        inside(folder, "images/a.png", "image")


@settings(max_examples=40, deadline=None)
@given(name=st.text(alphabet=st.sampled_from("./a\\:\0 é-"), max_size=8))
def test_any_name_is_inside_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for reader in (below, inside, lambda _, name, where: folder / safe_name(name, where)):
        try:
            found = reader(folder, name, "key")
        except DataError:
            continue
        assert found.resolve().is_relative_to(folder.resolve())
