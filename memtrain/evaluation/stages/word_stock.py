"""Words for null prompts if the prompts have too few words to exchange: ordinary words that a picture can show.

Method: lists by the form of a word in a caption, so that a noun mostly replaces a noun.
Source: none; written for this purpose.
Cost: none.
Cannot: speak other languages than English, or know what a word means.
"""

from __future__ import annotations

import unicodedata


def _listed(words: str) -> list[str]:
    return words.split()


FUNCTION_WORDS = frozenset(
    _listed(
        """
        a about above across after against all along amid among an and any are around as at be been before behind
        being below beneath beside between beyond both but by can could de des did do does down du during each
        either for from had has have he her his how i if in inside into is it its la le les like many may might more
        most my near no nor not of off on onto or other our out outside over per she should since so some such than
        that the their them then there these they this those through to toward towards under until up upon very via
        was we were what when where which while who whose will with within without would you your
        """
    )
)
"""Words that connect other words; a null prompt keeps them in their places."""
NOUNS = _listed(
    """
    acorn anchor anvil apron arch armchair axe badge bagel balcony ball banjo barn barrel basin basket beach bead
    bell bench bicycle blanket boot bottle boulder bowl bracelet branch bread brick bridge broom brush bucket button
    cabin cactus cake candle canoe canyon cape cart castle cave cellar chain chair cherry chest cliff cloak clock
    clover coat comb compass coral cottage cradle crane crate creek crow crown cup curtain dam deer desk dock donkey
    door drum dune eagle easel egg elbow envelope fan farm feather fence fern fiddle field fig flute fog folder
    forest fork fountain fox frog garden garlic gate ghost glacier glove goat goose grape hammer harbour harp hat
    hawk hazel hedge heron hill hinge honey hook horn inn island ivy jacket jar jug kettle key kite kitten knot
    ladder lake lamp lantern leaf ledge lemon letter lighthouse lily lizard loaf lobster lock loom magnet maple
    market mask meadow medal melon mill mirror mitten moss mountain mug mushroom nest net oak oar onion orchard
    otter oven owl paddle palace parrot path peach peacock pear pebble pelican pepper piano pier pigeon pillow pine
    pipe plate plough plum pocket pond porch pot pumpkin puppet quilt rabbit raft railway rake raven ribbon river
    road robe roof rope rose rug saddle sail sandal saw scarf shed sheep shelf shell shirt shovel sieve skirt sled
    slipper snail sofa spade spider spoon squirrel stable stairs statue stool stove stream swan sword table tailor
    tent thimble thorn throne tiger tile toad tower tractor train tree trumpet tulip tunnel turtle umbrella valley
    vase velvet village violin wagon wall walnut waterfall well whale wheel whistle willow windmill window wolf wool
    wreath yacht yard zebra
    """
)
ADJECTIVES = _listed(
    """
    ancient bare bright broad broken calm carved clean cold crooked curved damp dark deep dented distant dry dusty
    empty faded fine flat folded fresh frozen gentle golden heavy hollow huge leaning light little lonely long loose
    low mossy muddy narrow neat old open painted pale plain polished quiet ragged ripe rough round rusty shallow
    sharp shiny silent slim small smooth soft square steep striped sturdy tall tangled thick thin tidy tiny torn
    warm weathered wet wide wild winding wooden woven young
    """
)
DOING = _listed(
    """
    baking bending boiling building carrying catching chasing climbing cooking crossing dancing digging drawing
    drinking drying falling feeding fishing floating flying folding gathering growing hanging hiding holding hunting
    jumping kneeling knitting leading leaning lifting loading lying mending moving opening painting picking pulling
    pushing racing reading resting riding rolling rowing running sailing shining singing sitting sleeping sliding
    standing swimming swinging turning waiting walking washing watching weaving writing
    """
)
NAMES = _listed(
    """
    Adela Agnes Alder Alma Amos Anders Anselm Arlo Astrid Barlow Basil Beatrix Benno Bertram Birch Briggs Calder
    Casper Cedric Clara Conrad Corbin Dagmar Darby Delia Dorian Edda Edmund Elias Elmer Esther Fabian Felix Fenwick
    Fiona Gideon Greta Harlan Hedda Hollis Ida Ingrid Iris Ivor Jasper Jonas Judith Karla Keaton Lambert Larkin Lena
    Linus Lorimer Magda Marlow Matilda Merrick Mildred Nadia Nestor Norris Olga Orson Oswin Pascal Perkins Petra
    Quentin Ramona Rollo Rufus Sabine Selma Sigrid Stellan Tabitha Thaddeus Thea Tobias Ulric Ursula Verner Viola
    Wendell Wilma Winslow Yorick
    """
)
"""First and last names of people, for words with a capital letter."""


def stock_for(word: str, *, last: bool) -> list[str]:
    """Return the words that can replace `word`.

    Args:
        word: a word of a prompt.
        last: whether the word ends its phrase; other words count as adjectives.

    Returns:
        A list of words, in capitals if the word is; an empty list for a word without Latin letters.
    """
    lowered = word.lower()
    if not any("LATIN" in unicodedata.name(letter, "") for letter in lowered):
        return []
    if word[:1].isupper() and not word.isupper():
        return NAMES
    if lowered.endswith("ing") and len(lowered) > 5:
        found = DOING
    elif not last:
        found = ADJECTIVES
    elif lowered.endswith("s") and not lowered.endswith("ss") and len(lowered) > 3:
        found = [f"{noun}s" for noun in NOUNS if noun[-1] not in "shxyf"]
    else:
        found = NOUNS
    return [one.upper() for one in found] if word.isupper() and len(word) > 1 else found
