"""The API page is what the docstrings say, it has every public name, and every public class shows how it is used."""

import doctest
import importlib.util
import inspect
from pathlib import Path

import pytest

import nest_hf
import nest_hf.data

SCRIPT = Path(__file__).parent.parent / "docs/make_api.py"
spec = importlib.util.spec_from_file_location("make_api", SCRIPT)
make_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_api)

NAMES = [f"{module.__name__}.{name}" for module in (nest_hf, nest_hf.data) for name in module.__all__]
ON_PAGE = [name for names in make_api.GROUPS.values() for name in names]
METRICS = [name for name in ON_PAGE if name.startswith("nest_hf.metrics.")]
CLASSES = [name for name in [*NAMES, *METRICS] if inspect.isclass(make_api.find(name))]


def test_the_page_is_what_the_script_makes_of_the_docstrings():
    page = make_api.PAGE.read_text(encoding="utf-8")
    assert page == make_api.make_page(), "run `python docs/make_api.py`"


def test_every_public_name_is_on_the_page_once():
    assert set(NAMES) <= set(ON_PAGE)
    assert len(ON_PAGE) == len({name.rpartition(".")[2] for name in ON_PAGE})  # links go by the last part


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_has_an_example_that_runs(name):
    cls = make_api.find(name)
    examples = doctest.DocTestParser().get_examples(cls.__doc__ or "") if "__doc__" in vars(cls) else []
    running = [example for example in examples if doctest.SKIP not in example.options]
    assert running


def test_docstrings_become_lists_code_and_links():
    doc = """Turns [`~a.Known`] into [`Other`].

Args:
    one (`int`):
        Of [`Known`].
    **two: Passed on.

Raises:
    ValueError: if it is
    long.

Example:
    >>> 1 + 1
    2
"""
    assert make_api._markdown(doc.rstrip(), {"Known"}) == [
        *("Turns [`a.Known`](#known) into `Other`.", "", "**Args**", ""),
        *("- one (`int`):", "  Of [`Known`](#known).", r"- \*\*two: Passed on.", ""),
        *("**Raises**", "", "- ValueError: if it is", "  long.", ""),
        *("**Example**", "", "```python", ">>> 1 + 1", "2", "```"),
    ]
