"""Markdown from templates: everything that is printed is escaped, so that names and settings stay plain text."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&#])")


class Verbatim(str):
    """Text that was made for its place, such as a line of code."""

    __slots__ = ()


def escape(text: object) -> str:
    """One line of plain text: no markup, no table cell, no HTML and no formula begins in it."""
    return SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def render(template: str, **content: Any) -> str:
    """A template of this room as Markdown."""
    environment = Environment(
        loader=PackageLoader("ballast.report"),
        autoescape=False,  # noqa: S701  (escaped below, as Markdown)
        finalize=lambda value: value if isinstance(value, Verbatim) else escape(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)
