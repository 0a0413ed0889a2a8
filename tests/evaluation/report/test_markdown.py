"""The page as Markdown: tables, headings, lists, and nothing of a caption that Markdown would obey."""

from __future__ import annotations

from memtrain.evaluation.report.markdown import markdown
from memtrain.evaluation.report.section import bullets, heading, paragraph, table


def test_pieces_of_a_page_become_markdown() -> None:
    page = f"""<html><head><title>x</title><style>p {{}}</style></head><body><a class="skip" href="#m">Skip</a>
<main><h1>Report</h1><nav><a href="#a">Contents</a></nav>{heading("Part")}{paragraph("One  line.")}
{bullets(["a", "b"])}<figure><img src="x" alt="y"><svg><text>drawn</text></svg><figcaption>is</figcaption></figure>
{table(("name", "n"), [("a", 1), ("b|c", 2)], caption="All")}
<dl><div><dt>share</dt><dd><b>5%</b><small>1 of 20</small></dd></div></dl></main></body></html>"""
    assert markdown(page) == (
        "# Report\n\n### Part\n\nOne line.\n\n- a\n- b\n\nAll\n\n"
        "| name | n |\n| --- | --- |\n| a | 1 |\n| b\\|c | 2 |\n\n- share: 5% 1 of 20\n"
    )


def test_what_a_caption_says_is_not_obeyed() -> None:
    attack = "<script>x</script> [a](http://b) **c** `d` @someone $e$ | # f ~~g~~ ![h](i)"
    found = markdown(str(paragraph(attack)))
    for piece in ("<script", "[a]", "**", "`d`", "$e$", "~~", "@someone"):
        assert piece not in found.replace("\\" + piece[0], "\\\0"), piece
    assert markdown(str(paragraph("- not a list"))) == "\\- not a list\n"
    assert markdown(str(paragraph("1. not a list"))) == "\\1. not a list\n"
