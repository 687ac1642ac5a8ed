"""What labelled rows say about their prompts: columns `language`, `prompt`, `keywords` and `itn` -> requests."""

import re

from ..asr_prompt import Request, request_in_prompt, transcription_requests

COLUMNS = ("language", "prompt", "keywords", "itn")
ITN = {"true": True, "1": True, "false": False, "0": False}


def read_requests(rows, *, name: str) -> list[Request]:
    """
    The request of every row; what a row leaves open, or has no column for, is as in the default prompt.

    Args:
        rows (`datasets.Dataset`): From [`load_speech_dataset`]. Of its columns count
            `language` (`"zh"`, `"en"`, `"ja"` or their names); `prompt` (context, or a whole request as FunASR's
            manifests have it); `keywords` (words with commas between them; readers make such of a list); and `itn`
            (false: numbers as spoken).
        name (`str`): What to call the data in messages.

    Raises:
        ValueError: for a value that no prompt can be made of; it names the row's id.
    """
    columns = {key: rows[key][:] for key in COLUMNS if key in rows.column_names}
    if not columns:
        return [Request()] * len(rows)
    made: dict[tuple, Request] = {}
    requests = []
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        if values not in made:
            try:
                made[values] = _request(**dict(zip(columns, values, strict=True)))
            except ValueError as error:
                raise ValueError(
                    f"{name}: row {rows[index]['id']!r}: {error} Correct it, or rename the column."
                ) from error
        requests.append(made[values])
    return requests


def _request(language=None, prompt=None, keywords=None, itn=None) -> Request:
    for key, value in (("language", language), ("prompt", prompt), ("keywords", keywords)):
        if not isinstance(value, str | None):
            raise ValueError(f"`{key}` is {value!r} where text is due.")
    request = request_in_prompt((prompt or "").strip())
    words = tuple(dict.fromkeys(word.strip() for word in re.split("[,，、]", keywords or "") if word.strip()))
    if itn is not None and str(itn).lower() not in ITN:
        raise ValueError(f"`itn` is {itn!r} where true or false is due.")
    (named,) = transcription_requests(1, (language or "").strip() or None)
    return Request(
        language=named.language or request.language,
        prompt=request.prompt,
        keywords=words or request.keywords,
        itn=request.itn if itn is None else ITN[str(itn).lower()],
    )


__all__ = ["read_requests"]
