"""The site made of the pages: every link leads somewhere, and nothing in it is fetched from elsewhere."""

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


def test_the_site_is_built_with_every_link_checked_and_fetches_nothing(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed: pip install '.[docs]'")
    from mkdocs.config import load_config

    build.build(load_config(str(HOUSE / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = list(tmp_path.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in (HOUSE / "docs").glob("*.md")}
    fetched = re.compile(
        r'<(script|img|iframe)[^>]*\ssrc="?https?:|<link[^>]*rel="?(stylesheet|preconnect)[^>]*https?:'
    )
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page.name
