"""Sound descriptions, and the demo model's two tokenizers that are fitted to them and to the
captions of the synthetic world.
"""

import functools
import itertools
import json
import math
import re
from collections import Counter

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from audiolitefocus.config import TextConfig
from scripts.demo.world.sounds import draw

CAPTIONS = 5000  # of the synthetic world, from seed 0 on
LETTER_SCORE = -12.0  # log-probability below every word's: letters spell only unknown words

SOURCES = (
    "rain", "thunder", "wind", "ocean waves", "a small stream", "a waterfall", "a crackling fire",
    "birds singing", "an owl hooting", "a dog barking", "a cat purring", "a horse galloping",
    "crickets", "frogs croaking", "bees buzzing", "footsteps", "a door creaking", "a door slamming",
    "glass breaking", "keys jingling", "a clock ticking", "a church bell", "a telephone ringing",
    "a typewriter", "a hammer", "a saw cutting wood", "a car engine", "a train passing", "a siren",
    "a helicopter", "an aeroplane taking off", "a crowd cheering", "people talking", "a baby",
    "a child laughing", "a man whistling", "a woman singing", "a choir", "a piano", "a violin",
    "an acoustic guitar", "an electric bass", "a snare drum", "a deep gong", "a flute", "a trumpet",
    "a low hum", "a rising tone", "white noise", "short beeps", "silence", "water dripping",
)  # fmt: skip
PLACES = (
    "on a tin roof", "in the distance", "in a forest at night", "in a large empty hall", "indoors",
    "in a busy street", "by the sea", "under water", "behind a wall", "close to the microphone",
)  # fmt: skip
MANNERS = ("softly", "loudly", "slowly", "quickly", "steadily", "again and again", "with an echo")


@functools.cache
def descriptions() -> list[str]:
    """Sounds at places, in manners and in pairs; and captions."""
    lines = [" ".join(parts) for parts in itertools.product(SOURCES, PLACES)]
    lines += [", ".join(parts) for parts in itertools.product(SOURCES, MANNERS)]
    lines += [f"{one} and {other}" for one, other in itertools.pairwise(SOURCES)]
    return lines + [draw(seed).caption for seed in range(CAPTIONS)]


def clap_tokenizer() -> transformers.RobertaTokenizer:
    """Byte-level BPE: whatever the text, no token is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(descriptions(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return transformers.RobertaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]  # pairs, not texts
        model_max_length=TextConfig().clap_max_tokens,
    )


def t5_tokenizer() -> transformers.T5Tokenizer:
    """Unigram pieces: the words of the descriptions by how often they occur, and printable ASCII
    for all other words. Characters beyond that are unknown.
    """
    words = Counter(re.findall(r"[^\W_]+(?:-[^\W_]+)*|,", " ".join(descriptions())))
    total = sum(words.values())
    ranked = sorted(words, key=lambda word: (-words[word], word))
    scores = [(f"\u2581{word}", round(math.log(words[word] / total), 4)) for word in ranked]
    letters = ["\u2581", *map(chr, range(ord("!"), ord("~") + 1))]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return transformers.T5Tokenizer(
        vocab=special + scores + [(letter, LETTER_SCORE) for letter in letters],
        extra_ids=0,
        model_max_length=TextConfig().t5_max_tokens,
    )
