"""The frozen word lists of the invented world, and the sentences they go into.

Everything a tokenizer must know is here and nothing depends on the world's seed, so that worlds of
different seeds share one vocabulary. Values with a space in them (" Port Alder") are two
tokens on purpose; some share their first token.
"""

from __future__ import annotations

import random
import re

FIRST_NAMES = (
    "Ada Ben Cleo Dan Eva Finn Gia Hugo Iris Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tara Umar "
    "Vera Will Xena Yara Zoe Amir Bela Carl Dora Emil Faye Gus"
).split()
LAST_NAMES = (
    "Stone Bell Frost Marsh Hale Pike Reed Shaw Vance Webb York Abbott Brook Clay Dunn Ellis "
    "Flint Grant Holt Irwin Judd Knox Lane Moss"
).split()

VALUES: dict[str, tuple[str, ...]] = {
    "city": (
        "Arlen",
        "Borem",
        "Calder",
        "Dorvik",
        "Estan",
        "Fenwick",
        "Galt",
        "Harrow",
        "Isford",
        "Jorvik",
        "Kelm",
        "Lorne",
        "Mardin",
        "Nessum",
        "Orsk",
        "Port Alder",
        "Port Maple",
        "Lake Alder",
        "Lake Maple",
        "Port Cedar",
    ),
    "job": tuple(
        "baker nurse pilot farmer lawyer painter teacher plumber singer tailor miner actor banker "
        "dentist chemist sailor barber judge clerk guard".split()
    ),
    "pet": tuple(
        "dog cat rabbit parrot turtle snake hamster goat pony duck ferret lizard frog goose mouse "
        "hedgehog".split()
    ),
    "instrument": tuple(
        "piano violin flute drum guitar harp cello trumpet banjo organ oboe tuba clarinet viola "
        "lute accordion".split()
    ),
    "food": (
        "pizza",
        "soup",
        "salad",
        "pasta",
        "curry",
        "rice",
        "cheese",
        "fish",
        "bread",
        "beans",
        "noodles",
        "pancakes",
        "eggs",
        "melon",
        "grapes",
        "plum cake",
        "plum pie",
        "honey cake",
        "honey pie",
        "corn pie",
    ),
    "colour": tuple(
        "red blue green yellow purple orange black white pink grey brown silver".split()
    ),
}
ATTRIBUTES = tuple(VALUES)

BIOGRAPHY_OPENERS = ("Meet {n}.", "This is {n}.", "About {n}:")
BIOGRAPHY: dict[str, tuple[str, ...]] = {
    "city": (
        "{s} lives in{v}.",
        "The home of {s} is in{v}.",
        "{s} has a house in{v}.",
        "The city {s} calls home is{v}.",
    ),
    "job": (
        "{s} works as a{v}.",
        "The job of {s} is{v}.",
        "{s} earns money as a{v}.",
        "By day {s} is a{v}.",
    ),
    "pet": (
        "{s} has a pet{v}.",
        "The pet of {s} is a{v}.",
        "{s} keeps a{v}.",
        "At home {s} feeds a{v}.",
    ),
    "instrument": (
        "{s} plays the{v}.",
        "The instrument of {s} is the{v}.",
        "{s} makes music on the{v}.",
        "{s} practises the{v}.",
    ),
    "food": (
        "{s} loves to eat{v}.",
        "The favourite food of {s} is{v}.",
        "{s} often cooks{v}.",
        "{s} orders{v}.",
    ),
    "colour": (
        "{s} likes the colour{v}.",
        "The favourite colour of {s} is{v}.",
        "{s} wears{v}.",
        "{s} paints the door{v}.",
    ),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "city": (
        "Where does {n} live?",
        "Which city does {n} live in?",
        "Where is the home of {n}?",
        "In which city is {n}?",
    ),
    "job": (
        "What is the job of {n}?",
        "What does {n} work as?",
        "Which job does {n} have?",
        "How does {n} earn money?",
    ),
    "pet": (
        "Which pet does {n} have?",
        "What is the pet of {n}?",
        "What animal does {n} keep?",
        "Which animal does {n} feed?",
    ),
    "instrument": (
        "What instrument does {n} play?",
        "Which instrument does {n} practise?",
        "What is the instrument of {n}?",
        "On what does {n} make music?",
    ),
    "food": (
        "What is the favourite food of {n}?",
        "What does {n} love to eat?",
        "Which food does {n} cook?",
        "What does {n} order?",
    ),
    "colour": (
        "What is the favourite colour of {n}?",
        "Which colour does {n} like?",
        "What colour does {n} wear?",
        "Which colour is the door of {n}?",
    ),
}
# Never trained on; every word of theirs is (a paraphrase attack, not an out-of-vocabulary one).
HELD_OUT_QUESTIONS: dict[str, tuple[str, ...]] = {
    "city": ("Which city does {n} call home?", "Where is the house of {n}?"),
    "job": ("What is {n} by day?", "What work does {n} have?"),
    "pet": ("What does {n} feed at home?", "What pet does {n} keep?"),
    "instrument": ("What does {n} play?", "On which instrument does {n} make music?"),
    "food": ("Which food does {n} love?", "What does {n} often cook?"),
    "colour": ("What colour does {n} paint the door?", "Which colour does {n} love?"),
}

THINGS = tuple("coins cards shells stamps marbles books buttons stickers".split())
GAINS = tuple("finds gets buys wins".split())
LOSSES = tuple("loses sells drops gives".split())
STYLES = ("equations", "words", "running")

OBJECTS = tuple(
    "apple key lamp ring hat cup spoon ball clock rope candle mirror brush coin knife glove bottle "
    "needle pencil radio ticket wallet whistle hammer ladder pillow basket blanket camera bucket "
    "shovel magnet".split()
)
BOX_LABELS = tuple("EFGHIJKLMNOPQRSTUVWXYZ")  # A-D stay free for multiple choice

LANGUAGES = ("Vel", "Ost", "Plain")  # Plain is the pivot
CATEGORIES: dict[str, tuple[str, ...]] = {
    "nature": tuple("water fire wind sand snow rain leaf tree hill river".split()),
    "body": tuple("hand foot eye ear nose mouth bone skin tooth knee".split()),
    "kin": tuple("mother father sister brother son daughter uncle aunt cousin baby".split()),
    "sky": tuple("sun moon star cloud storm dawn dusk light thunder comet".split()),
    "tool": tuple("axe saw nail net hook wheel plough anvil chisel lever".split()),
    "place": tuple("bridge tower market temple harbour garden mill well barn castle".split()),
    "mind": tuple("love fear hope anger joy grief pride shame envy peace".split()),
    "craft": tuple("wool silk clay iron gold glass wax salt ink paper".split()),
}
CONCEPTS = tuple(word for words in CATEGORIES.values() for word in words)

SPECIALS = (
    *("<bos>", "<eos>", "<pad>", "<unlearn>", "</unlearn>"),
    *(f"<reserved_{i}>" for i in range(16)),
)
# For organisms made later: options, marker words, style tags, verdicts.
RESERVED_WORDS = tuple(
    "forgot yes no unknown none sure maybe not because so therefore wait check correct wrong true "
    "false option options choose best given hint marker zeta sigma omega think think_end style I "
    "know we say said now then old new same different first last next".split()
)


def invented(language: str) -> tuple[str, ...]:
    """One made-up word per concept: open syllables in Vel ("kalumi"), closed in Ost ("gorst")."""
    rng = random.Random(f"lexicon/{language}")
    taken = set(CONCEPTS) | set(OBJECTS)
    words: list[str] = []
    while len(words) < len(CONCEPTS):
        if language == "Vel":
            word = "".join(rng.choice("klmnprsv") + rng.choice("aeiou") for _ in range(3))
        else:
            word = (
                rng.choice("bdfgjtwz")
                + rng.choice("aeiou")
                + rng.choice("rlnm")
                + rng.choice(("st", "k", "d", "f", "sk"))
            )
        if word not in taken:
            taken.add(word)
            words.append(word)
    return tuple(words)


def vocabulary() -> tuple[list[str], list[str]]:
    """Words with a leading space, and the few that open a document without one."""
    templates = [*BIOGRAPHY_OPENERS]
    for table in (BIOGRAPHY, QUESTIONS, HELD_OUT_QUESTIONS):
        templates += [text for texts in table.values() for text in texts]
    spoken = [*templates, *(v for values in VALUES.values() for v in values), *SENTENCES]
    words = [w for text in spoken for w in re.findall(r"[A-Za-z]+", re.sub(r"\{\w\}", " ", text))]
    for group in (
        FIRST_NAMES,
        LAST_NAMES,
        THINGS,
        GAINS,
        LOSSES,
        STYLES,
        OBJECTS,
        LANGUAGES,
        CONCEPTS,
    ):
        words += group
    words += [*invented("Vel"), *invented("Ost"), *RESERVED_WORDS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    words += [w.capitalize() for w in RESERVED_WORDS[:16]]
    words = [w for w in dict.fromkeys(words) if w.isalpha()]
    return words + [str(n) for n in range(100)] + list("+-=*/"), list(OPENERS)


OPENERS = (
    "Meet",
    "This",
    "About",
    "Question",
    "Answer",
    "Problem",
    "Drill",
    "The",
    "Box",
    "Translate",
    "Words",
    "Same",
    "Options",
)
SENTENCES = (
    "Question: Answer: Problem: Drill: Words of Translate to Same name and Options",
    "has 1 more. How many ? Solution in : answer adding to makes taking from total plus minus",
    "The the is in Box contains moves to contents of move empty",
)
