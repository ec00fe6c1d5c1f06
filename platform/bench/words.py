"""Prompts of a wanted number of tokens: of words that the server's tokenizer keeps whole."""

import random
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from stafette.platform.bench.client import Client
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece, words_of

Count = Callable[[str], Awaitable[int]]  # tokens of a text, with no special ones

# Short and frequent: a token each, with the space before them, in any usual vocabulary of English.
COMMON = tuple(
    """
    the and for are but not you all any can her was one our out day get has him his how man new now
    old see two way who boy did its let put say she too use time year people work first last long
    great little own other right big high different small large next early young important few
    public same able back after before between through over under again here there when where why
    what which while about above below because against during with without within into onto from
    name good sentence think help low line cause much mean differ move form where air well also play
    end home read hand port spell add land must large such act ask men change went light kind off
    need house picture try animal point mother world near build self earth father head stand page
    should country found answer school grow study still learn plant cover food sun four state keep
    eye never let thought city tree cross farm hard start might story saw far sea draw left late run
    press close night real life stop open seem together white children begin got walk example ease
    paper group always music those both mark often letter until mile river car feet care second book
    carry took science eat room friend began idea fish mountain north once base hear horse cut sure
    watch color face wood main enough plain girl usual ready red list though feel talk bird soon
    body dog family direct leave song measure door product black short class wind question happen
    complete ship area half rock order fire south problem piece told knew pass since top whole king
    space heard best hour better true hundred five remember step hold west ground interest reach
    fast sing listen six table travel less morning ten simple several toward war lay pattern slow
    center love person money serve appear road map rain rule govern pull cold notice voice unit
    """.split()
)
_FEWEST = 16  # words that a prompt can be made of
_FIRST_NUMBER = 3  # of those that pieces are made of


async def usable_words(count: Count, candidates: Sequence[str] = COMMON) -> tuple[str, ...]:
    """Return the words of which each is one token, found with few questions."""
    seen = tuple(dict.fromkeys(candidates))
    found = await _whole(count, seen)
    if len(found) < _FEWEST:
        remedy = f"only {len(found)} common words are tokens: give --tokenizer, of this model"
        raise InvalidSetting("--model", "its tokenizer", remedy)
    return tuple(found)


async def _whole(count: Count, words: Sequence[str]) -> list[str]:
    # An anchor before them: a text's first word has no space in front of it.
    if await count(" ".join(("the", *words))) - await count("the") == len(words):
        return list(words)
    if len(words) == 1:
        return []
    middle = len(words) // 2
    return await _whole(count, words[:middle]) + await _whole(count, words[middle:])


class Speller:
    """Turns pieces into text: equal pieces are equal words, and of another salt others."""

    def __init__(self, words: Sequence[str], salt: str) -> None:
        self._words = np.array(words, dtype=object)
        self._salt = random.Random(salt).getrandbits(19) << 24

    def text(self, pieces: Sequence[Piece]) -> str:
        salted = [Piece(self._salt + piece.number, piece.tokens) for piece in pieces]
        places = (words_of(salted) - _FIRST_NUMBER) % len(self._words)
        return " ".join(self._words[places].tolist())


def counter_of(client: Client, model: str) -> Count:
    """Return what asks the server's own tokenizer (stafette, vLLM, SGLang: POST /tokenize)."""

    async def count(text: str) -> int:
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        reply = await client.post("/tokenize", body)
        if reply.head.status != 200:
            raise InvalidSetting("--tokenizer", None, "is needed: the server has no /tokenize")
        told = reply.json()
        return int(told["count"] if "count" in told else len(told["tokens"]))

    return count


def local_counter(tokenizer: str) -> Count:
    """Return what asks a tokenizer here: of a directory, a GGUF file, or the embedded model."""
    from stafette.workers.weights.opening import open_tokenizer

    opened = open_tokenizer(tokenizer)

    async def count(text: str) -> int:
        return len(opened.encode(text, add_special_tokens=False))

    return count
