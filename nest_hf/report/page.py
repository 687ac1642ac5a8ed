"""One HTML file that holds everything it needs: style, script, data."""

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.audio_encoding import write_whole

ASSETS = Path(__file__).parent / "assets"
# `<` could end the script that holds the data; the line separators end a line in older JavaScript; half a surrogate
# pair cannot be written in UTF-8
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    data: Mapping,
    scripts: Sequence[str],
    attachments: Mapping[str, Mapping] | None = None,
) -> Path:
    """
    Writes a page whose body is built by scripts from data. Its content security policy admits these scripts and this
    style alone, by their hashes, and no connection to anywhere.

    Args:
        path (`str` or `os.PathLike`): Of the page.
        title (`str`): Of the page.
        data (`Mapping`): What the scripts show; anything that JSON can hold.
        scripts (`Sequence[str]`): Files in `assets/`, in order; they share one scope.
        attachments (`Mapping[str, Mapping]`, *optional*): Further data by name, which are parsed when needed only.
    """
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    parts = [(ASSETS / name).read_text(encoding="utf-8") for name in scripts]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "media-src blob: file:; base-uri 'none'; form-action 'none'"
    )
    blocks = {"data": data, **(attachments or {})}
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(_writable(title))}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            "<noscript>This report is drawn by JavaScript, which is switched off here.</noscript>",
            *(
                f'<script type="application/json" id="{html.escape(name)}">{embedded_json(block)}</script>'
                for name, block in blocks.items()
            ),
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )
    path = Path(path)
    write_whole(path, page.encode("utf-8"))
    return path


def embedded_json(value) -> str:
    r"""
    JSON that is safe inside a script element: nothing in it ends the element or begins a comment.

    >>> embedded_json({"text": "</script>", "snr_db": float("nan")})
    '{"text":"\\u003c/script\\u003e","snr_db":null}'
    """
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value):
    """Without NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


__all__ = ["embedded_json", "write_page"]
