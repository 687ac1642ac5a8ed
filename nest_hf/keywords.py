"""Keyword lists: their file, and where their keywords stand in a text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .alignment import Span
from .text import normalize


@dataclass(frozen=True)
class Keyword:
    """
    A keyword to be heard.

    Args:
        text (`str`): The keyword as it is written.
        aliases (`tuple[str, ...]`, *optional*): Other ways to write it, which count as the keyword.
        group (`str`, *optional*): The group in whose table it counts.
    """

    text: str
    aliases: tuple[str, ...] = ()
    group: str | None = None


def read_keywords(path: str | Path) -> list[Keyword]:
    """
    Reads a keyword file: one keyword per line, `#` begins a comment line, `keyword<TAB>alias,alias` names aliases, and
    a line `[group]` begins a group.

    Raises:
        ValueError: for a file that is missing, not UTF-8 or without keywords, and for a line of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`keywords` is {str(path)!r}, which is no file; pass a list of keywords or a text file.")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8.") from None
    keywords, group = [], None
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            if not group:
                raise ValueError(f"{path}: line {number} is a group without a name; write [name].")
            continue
        text, *rest = line.split("\t")
        if len(rest) > 1:
            raise ValueError(f"{path}: line {number} has {len(rest)} tabs; write keyword<TAB>alias,alias.")
        aliases = tuple(alias.strip() for alias in rest[0].split(",")) if rest else ()
        for part in (text, *aliases):
            if not "".join(normalize(part).split()):
                raise ValueError(f"{path}: line {number}: {part!r} normalises to nothing; remove it.")
        keywords.append(Keyword(text.strip(), aliases, group))
    if not keywords:
        raise ValueError(f"{path} holds no keyword; write one per line.")
    return keywords


class KeywordFinder:
    """
    Finds keywords in normalised text without spaces: the longest first, from left to right, without overlap.

    Args:
        keywords (`Iterable[str | Keyword]`): The list.
        level, remove_fillers, fold_erhua: How the texts are normalised, see [`~text.normalize`]; the list is too.

    Attributes:
        groups (`dict[str, str | None]`): The group of each keyword; its keys are the normalised keywords, in order.

    Raises:
        ValueError: for a list without keywords, a keyword that normalises to nothing, and a text that stands for two
            keywords or in two groups.

    Example:
        >>> finder = KeywordFinder(["办理", "办理业务"])
        >>> finder.find("办理和办理业务")
        [Span(start=0, end=2, keyword='办理'), Span(start=3, end=7, keyword='办理业务')]
    """

    def __init__(
        self,
        keywords: Iterable[str | Keyword],
        *,
        level: str = "zh",
        remove_fillers: bool = False,
        fold_erhua: bool = False,
    ):
        def written(text: str) -> str:
            if not isinstance(text, str):
                raise ValueError(f"`keywords` holds {text!r} ({type(text).__name__}); pass strings.")
            normal = normalize(text, level, remove_fillers=remove_fillers, fold_erhua=fold_erhua)
            normal = "".join(normal.split())
            if not normal:
                raise ValueError(f"`keywords` holds {text!r}, which normalises to nothing at `level` {level!r}.")
            return normal

        if keywords is None or isinstance(keywords, str):
            raise ValueError(f"`keywords` is {keywords!r}; pass a list of strings.")
        self.groups: dict[str, str | None] = {}
        self._keyword_of: dict[str, str] = {}
        for keyword in keywords:
            keyword = keyword if isinstance(keyword, Keyword) else Keyword(keyword)
            name = written(keyword.text)
            if self.groups.setdefault(name, keyword.group) != keyword.group:
                raise ValueError(
                    f"`keywords` holds {keyword.text!r} in the groups {self.groups[name]!r} and {keyword.group!r}; "
                    "choose one."
                )
            for text in (name, *map(written, keyword.aliases)):
                if self._keyword_of.setdefault(text, name) != name:
                    raise ValueError(
                        f"`keywords` holds {text!r} for both {self._keyword_of[text]!r} and {name!r}; choose one."
                    )
        if not self.groups:
            raise ValueError("`keywords` is empty; pass at least one keyword.")
        longest_first = sorted(self._keyword_of, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._has_aliases = len(self._keyword_of) > len(self.groups)

    def find(self, text: str) -> list[Span]:
        """The spans of keywords and aliases in a normalised text without spaces."""
        return [Span(m.start(), m.end(), self._keyword_of[m[0]]) for m in self._pattern.finditer(text)]

    def without_aliases(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """The text with every alias replaced by its keyword, and the spans, in the same order, there."""
        if not self._has_aliases:
            return text, spans
        parts, moved, end, length = [], [], 0, 0
        for span in spans:
            parts += [text[end : span.start], span.keyword]
            start = length + span.start - end
            length, end = start + len(span.keyword), span.end
            moved.append(Span(start, length, span.keyword))
        return "".join([*parts, text[end:]]), moved
