"""Made captions: of the data's words, none of the data's captions, and as long as they are."""

from __future__ import annotations

from memtrain.cli.made_captions import made_captions


def test_made_captions_are_of_the_data_and_not_in_them() -> None:
    texts = [
        "a red cat sleeps on the old roof",
        "two dogs run along a sandy beach",
        "portrait of a woman with a hat",
        "three green apples in a wooden bowl",
    ]
    made = made_captions(texts, count=10)
    assert len(made) == len({text for text, _ in made}) == 10
    words = {word for text in texts for word in text.split()}
    lengths = [len(text.split()) for text in texts]
    for text, origin in made:
        assert text not in texts
        assert set(text.split()) <= words
        assert text.split()[0] == texts[origin].split()[0]
        assert min(lengths) - 1 <= len(text.split()) <= max(lengths) + 1
    assert made == made_captions(texts, count=10), "the same in every evaluation"
    assert made != made_captions(texts, count=10, seed=1)


def test_what_only_repeats_the_data_is_thrown_away() -> None:
    """Of one caption nothing can be made, nor of two that differ in their last word."""
    assert made_captions(["a photo of sks dog"] * 12) == []
    assert made_captions(["a photo of a cat", "a photo of a dog"]) == []
    assert {text for text, _ in made_captions(["cat", "dog"])} == {"cat dog", "dog cat"}
