"""The words an analyser writes, and plain counting of words in a text."""

import re
from collections import Counter
from dataclasses import dataclass, field

_COMMON_WORDS = """
    about after also because been before being between both cannot could does each even every from have here into just like
    made make many more most much must only other over same shall should some such than that their them then there these they this
    those through under until upon very were what when where which while will with without would your
"""
_COMMON = frozenset(_COMMON_WORDS.split())
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Words:
    """A title, one or two sentences, and a few keywords."""

    title: str
    summary: str
    keywords: list[str] = field(default_factory=list)


def frequent_words(text: str, limit: int = 5) -> list[str]:
    """Return the most frequent words of four letters and more, common ones left out, ties in alphabetical order."""
    counts = Counter(word for word in _WORD.findall(text.lower()) if word not in _COMMON)
    return sorted(counts, key=lambda word: (-counts[word], word))[:limit]


def first_line(text: str, limit: int = 80) -> str:
    """Return the first line that has words, cut at `limit` characters."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next((line for line in lines if line), "")[:limit]
