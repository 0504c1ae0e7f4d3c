"""One HTML file that needs nothing else: headings, tables, pictures inside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from ttm_tools.words import shown

_STYLE: Final = """
:root { color-scheme: light dark; --line: #cfd6e2; --dim: #4c586d; --back: #ffffff; --text: #17202e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #2c3648; --dim: #a3aec2; --back: #10151f; --text: #e6eaf2; }
}
body { max-width: 76rem; margin: 0 auto; padding: 1rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; border-bottom: 1px solid var(--line); }
p { margin: .2rem 0; color: var(--dim); overflow-wrap: anywhere; }
nav a { margin-right: .8rem; color: inherit; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); }
.wide { overflow-x: auto; max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; position: sticky; top: 0; background: var(--back); }
th, td { padding: .1rem .7rem .1rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; }
td { unicode-bidi: isolate; }
input { font: inherit; width: 20rem; max-width: 100%; }
"""

_FILTER: Final = """
for (const box of document.querySelectorAll("input[data-rows]")) {
  const rows = [...document.getElementById(box.dataset.rows).tBodies[0].rows];
  box.addEventListener("input", () => {
    for (const row of rows) row.hidden = !row.textContent.includes(box.value);
  });
}
"""


class Page:
    """A page under construction: sections in order, each with a heading that the top links to."""

    def __init__(self, title: str) -> None:
        self.title = shown(title)
        self._parts: list[str] = []
        self._links: list[str] = []

    def section(self, title: str) -> None:
        """A heading."""
        name = f"s{len(self._links)}"
        self._links.append(f'<a href="#{name}">{escape(title)}</a>')
        self._parts.append(f'<h2 id="{name}">{escape(title)}</h2>')

    def say(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(shown(text))}</p>")

    def picture(self, png: bytes, alt: str) -> None:
        """A picture; `alt` says what it shows to who cannot see it."""
        data = base64.b64encode(png).decode("ascii")
        self._parts.append(f'<img alt="{escape(shown(alt))}" src="data:image/png;base64,{data}">')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, searched: bool = False) -> None:
        """A table; with `searched` a box above it that leaves the rows with a text."""
        body = [list(row) for row in rows]
        numeric = [all(isinstance(row[at], int | float) for row in body) for at in range(len(columns))]
        kind = [' class="number"' if number and body else "" for number in numeric]
        name = f"t{len(self._parts)}"
        if searched:
            self._parts.append(
                f'<input type="search" data-rows="{name}" placeholder="rows with this text" aria-label="filter">'
            )
        head = "".join(f"<th{of}>{escape(column)}</th>" for of, column in zip(kind, columns, strict=True))
        lines = (
            "".join(f"<td{of}>{escape(_text(value))}</td>" for of, value in zip(kind, row, strict=True)) for row in body
        )
        cells = "".join(f"<tr>{line}</tr>\n" for line in lines)
        self._parts.append(
            f'<div class="wide" tabindex="0"><table id="{name}"><thead><tr>{head}</tr></thead>\n<tbody>{cells}</tbody>'
            "</table></div>"
        )

    def html(self) -> str:
        """The whole file; nothing in it is fetched from anywhere."""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>\n"
            f"<h1>{escape(self.title)}</h1>\n<nav>{' '.join(self._links)}</nav>\n"
            + "\n".join(self._parts)
            + f"\n<script>{_FILTER}</script></body></html>\n"
        )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(str(value))
