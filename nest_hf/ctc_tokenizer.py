"""The character vocabulary of a CTC head, built from the training text."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable

from transformers import Wav2Vec2CTCTokenizer

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"


def build_ctc_tokenizer(
    texts: Iterable[str], *, min_count: int = 1, do_lower_case: bool = False
) -> Wav2Vec2CTCTokenizer:
    """
    One token per character of `texts`, in the order of their code points, after blank, unknown and space.

    Args:
        texts (iterable of `str`): The training text, as it will be given to the tokenizer.
        min_count (`int`, *optional*, defaults to 1): Rarer characters become `<unk>`.
        do_lower_case (`bool`, *optional*, defaults to `False`): Lowercase texts before counting and encoding.

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
        counts.update(text.lower() if do_lower_case else text)
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
