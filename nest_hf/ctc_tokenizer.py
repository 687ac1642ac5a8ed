"""Vocabularies of a CTC head: characters of the training text, or the byte pairs of Fun-ASR-Nano."""

import base64
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"


def build_ctc_tokenizer(
    texts: Iterable[str], *, min_count: int = 1, do_lower_case: bool = False
) -> Wav2Vec2CTCTokenizer:
    """
    One token per character of `texts`, in the order of their code points, after blank, unknown and space.

    Args:
        texts (iterable of `str`): The training text, as it will be given to the tokenizer.
        min_count (`int`, *optional*, defaults to 1): Rarer characters become `<unk>`.
        do_lower_case (`bool`, *optional*, defaults to `False`):
            Ignore case. As `Wav2Vec2CTCTokenizer` has it: uppercase inside, texts come back in lowercase.

    Returns:
        `Wav2Vec2CTCTokenizer`, whose pad token (id 0) is the blank. `|` in a text counts as a space.

    Example:

    ```python
    >>> from nest_hf.ctc_tokenizer import build_ctc_tokenizer

    >>> tokenizer = build_ctc_tokenizer(["你好", "ok ok"])
    >>> tokenizer("ok 你").input_ids, len(tokenizer), tokenizer.pad_token_id
    ([4, 3, 2, 5], 7, 0)

    ```
    """
    counts = Counter()
    for text in texts:
        counts.update(text.upper() if do_lower_case else text)
    characters = sorted(c for c, count in counts.items() if count >= min_count and not c.isspace() and c != SPACE)
    if not characters:
        raise ValueError(f"`texts` has no character that occurs `min_count` = {min_count} times; pass training text.")
    vocabulary = {token: index for index, token in enumerate([BLANK, UNKNOWN, SPACE, *characters])}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocab.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(vocabulary, file, ensure_ascii=False)
        return Wav2Vec2CTCTokenizer(
            path,
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN,
            pad_token=BLANK,
            word_delimiter_token=SPACE,
            do_lower_case=do_lower_case,
        )


# as in FunASR's `SenseVoiceTokenizer`, which has it from GPT-2
PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def read_tiktoken(path: str | os.PathLike, *, vocab_size: int, blank: int) -> PreTrainedTokenizerFast:
    """
    The byte-pair vocabulary of Fun-ASR-Nano's CTC head.

    Args:
        path (`str`): A `.tiktoken` file: on each line a token in base64 and its rank, which is its id.
        vocab_size (`int`): Outputs of the CTC head. Those beyond the file are special tokens, written as nothing.
        blank (`int`): Id of the blank, beyond the file; becomes the pad token.
    """
    with open(path, encoding="ascii") as file:
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file if line.strip())}
    if sorted(ranks.values()) != list(range(len(ranks))) or not len(ranks) <= blank < vocab_size:
        raise ValueError(
            f"{path} has {len(ranks)} tokens for `vocab_size` {vocab_size} and `blank` {blank}; ids must run from 0, "
            "and the blank must lie beyond them."
        )
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # a token comes of the two tokens whose merge has the lowest ranks: tiktoken merges by the rank of the result
    merges = []
    for token in sorted(ranks, key=ranks.get):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += [(text(a), text(b)) for a, b in sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<blank>" if index == blank else f"<special_{index}>" for index in range(len(ranks), vocab_size)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<blank>", additional_special_tokens=[n for n in names if n != "<blank>"]
    )
