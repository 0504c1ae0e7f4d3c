"""The list of BOs on ttm-top's screen: any number of rows, of which only those on the screen are made."""

from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ttm_tools.topmodel import COLUMNS, GROUP, Column, Row

_PLACE_STYLES: Final = {"vram": "#4fc3f7", "gtt": "#ffd54f", "system": "#a5d6a7"}
_OTHER_PLACE: Final = "#ce93d8"

PLAIN: Final = Style()
"""What pads a line. Without a style at all, textual fails where colours are switched off (NO_COLOR)."""

NAME: Final = 16
"""The least width of a name."""

_LEFT_OUT: Final = ("ORDERS", "FENCES", "PINS", "MOVES", "POP", "GROUP")
"""Columns in the order in which a narrow screen does without them."""


def columns_for(width: int, *, grouped: bool = False) -> list[tuple[int, Column]]:
    """The columns, with their numbers, that a screen of this width has room for: evictions and faults always.

    `grouped`: the device has groups.
    """
    columns = [(number, column) for number, column in enumerate(COLUMNS) if grouped or column is not GROUP]
    for name in ("", *_LEFT_OUT):
        columns = [(number, column) for number, column in columns if column.name != name]
        if sum(column.width + 1 for _, column in columns if column.width) + NAME + 3 <= width:
            break
    return columns


def place_colour(place: str) -> str:
    """The colour of a region."""
    return _PLACE_STYLES.get(place, _OTHER_PLACE)


class BoList(ScrollView, can_focus=True, inherit_bindings=False):
    """The list: only the lines on the screen are made. Line 0 is the header, and stays."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "up", show=False),
        Binding("down", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "a page up", show=False),
        Binding("pagedown", "page(1)", "a page down", show=False),
        Binding("home", "jump(0)", "the first", show=False),
        Binding("end", "jump(-1)", "the last", show=False),
    ]
    DEFAULT_CSS = """
    BoList { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    """

    class SortBy(Message):
        """The header of a column was clicked."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.cursor = 0
        self.column = 0
        self.descending = False
        self.grouped = False

    @property
    def selected(self) -> str | None:
        """The BO under the cursor."""
        return self.rows[self.cursor].name if self.rows else None

    @property
    def page(self) -> int:
        """Rows on the screen."""
        return max(1, self.size.height - 1)

    def on_screen(self) -> list[str]:
        """The BOs that can be seen now."""
        top = round(self.scroll_y)
        return [row.name for row in self.rows[top : top + self.page]]

    def show_rows(self, rows: list[Row], column: int, descending: bool) -> None:
        """New rows; the cursor stays on its BO, or where it was when that is gone."""
        selected = self.selected
        self.rows, self.column, self.descending = rows, column, descending
        if selected is not None and not (self.cursor < len(rows) and rows[self.cursor].name == selected):
            found = next((number for number, row in enumerate(rows) if row.name == selected), None)
            moved = found is not None and found != self.cursor
            self.cursor = max(0, min(self.cursor if found is None else found, len(rows) - 1))
            if moved:
                self._follow_cursor()
        self.cursor = max(0, min(self.cursor, len(rows) - 1))
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self.refresh()

    def action_move(self, by: int) -> None:
        """The cursor, by lines."""
        self.cursor = max(0, min(len(self.rows) - 1, self.cursor + by))
        self._follow_cursor()

    def action_page(self, by: int) -> None:
        """The cursor, by pages."""
        self.action_move(by * self.page)

    def action_jump(self, to: int) -> None:
        """To the first (0) or the last line."""
        self.cursor = 0 if to == 0 else max(0, len(self.rows) - 1)
        self._follow_cursor()

    def _follow_cursor(self) -> None:
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= top + self.page:
            self.scroll_to(y=self.cursor - self.page + 1, animate=False)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Header: sort. Line: select."""
        if event.y == 0:
            at = 0
            for number, _column, width in self._shown():
                if at <= event.x < at + width + 1:
                    self.post_message(self.SortBy(number))
                at += width + 1
        elif (line := round(self.scroll_y) + event.y - 1) < len(self.rows):
            self.cursor = line
            self.refresh()

    def _shown(self) -> list[tuple[int, Column, int]]:
        """The columns that there is room for: number, column, width; the name has the rest."""
        columns = columns_for(self.size.width, grouped=self.grouped)
        rest = sum(column.width + 1 for _, column in columns if column.width)
        return [(number, column, column.width or max(NAME, self.size.width - rest - 3)) for number, column in columns]

    def render_line(self, y: int) -> Strip:
        """See textual."""
        width = self.size.width
        if y == 0:
            return self._header(width)
        number = round(self.scroll_y) + y - 1
        if number >= len(self.rows):
            return Strip.blank(width, PLAIN)
        row = self.rows[number]
        here = number == self.cursor
        back = Style(bgcolor="#3a4a63" if here else None, bold=here)
        segments = [Segment("▶" if here else " ", back)]
        for _number, column, wide in self._shown():
            text = _fitted(column.text(row), wide, column.left)
            style = back
            if column.name == "PLACE":
                style += Style(color=place_colour(row.place))
            elif column.name == "PINS" and row.count("pin_count"):
                style += Style(color="#ff8a65", bold=True)
            segments.append(Segment(text + " ", style))
        return Strip(segments).adjust_cell_length(width, back)

    def _header(self, width: int) -> Strip:
        segments = [Segment(" ", Style(bold=True))]
        for number, column, wide in self._shown():
            mark = ("▼" if self.descending else "▲") if number == self.column else ""
            text = _fitted(column.name + mark, wide, column.left)
            style = Style(bold=True, color="#4fc3f7" if number == self.column else None, underline=True)
            segments.append(Segment(text + " ", style))
        return Strip(segments).adjust_cell_length(width, PLAIN)


def _fitted(text: str, width: int, left: bool) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.ljust(width) if left else text.rjust(width)
