"""The screen of ttm-top: regions, rates, the list of BOs, keys."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Footer, HelpPanel, Input, Static

from ttm_tools.bolist import BoList
from ttm_tools.device import Device
from ttm_tools.errors import CommandFailed, MountError
from ttm_tools.groups import grouped
from ttm_tools.threads import in_thread
from ttm_tools.topdetail import Detail
from ttm_tools.topgroups import Groups
from ttm_tools.topmodel import COLUMNS, Model, Reading
from ttm_tools.topparts import RateBox, header_line, region_lines
from ttm_tools.words import shown

_COMMANDS: Final = {
    "e": ("evict", "", "evict"),
    "v": ("validate", "vram", "to vram"),
    "g": ("validate", "gtt", "to gtt"),
    "d": ("defrag", "", "defrag"),
    "p": ("pin", "", "pin"),
    "u": ("unpin", "", "unpin"),
    "b": ("backup", "", "backup"),
    "r": ("restore", "", "restore"),
    "x": ("unmap", "", "unmap"),
}
"""Key → command of the selected BO, its words, what the footer says."""


class Main(Screen[None], inherit_bindings=False):
    """The first screen: Tab and what copies text are no keys of it, so that the list of keys is short."""


class Top(App[str]):
    """The program. Its result is a sentence when it had to end because the mount is gone."""

    CSS = """
    #head { height: 1; background: $panel; }
    #regions { height: auto; padding: 1 0 0 0; }
    #rates { height: 3; padding: 1 0 0 0; grid-size: 3 2; grid-gutter: 0 2; }
    BoList { height: 1fr; margin: 1 0 0 0; background: $surface; }
    .-short #regions, .-short #rates { padding: 0; }
    .-short #rates { height: 2; }
    #message { height: 1; }
    HelpPanel { width: 38; }
    Input { height: 1; border: none; display: none; }
    Input.shown { display: block; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "ttm-top"
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-short"), (30, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        # What a narrow footer must show comes first.
        Binding("q", "quit", "quit"),
        Binding("question_mark", "keys", "keys", key_display="?"),
        Binding("enter", "detail", "details", key_display="Enter"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("space", "pause", "pause"),
        *(Binding(key, f"command('{key}')", label) for key, (_, _, label) in _COMMANDS.items()),
        *(
            Binding(column.shift, f"sort({n})", f"sort by {column.name}", show=False)
            for n, column in enumerate(COLUMNS)
        ),
        Binding("G", "groups", "groups", show=False),
        Binding("less_than_sign", "sort_next(-1)", "sort by the column before", show=False),
        Binding("greater_than_sign", "sort_next(1)", "sort", key_display="< >"),
        Binding("escape", "clear", "no filter", show=False),
    ]

    def __init__(self, device: Device, commands: Device, interval: float, sort: int, pattern: str = "") -> None:
        super().__init__()
        self.model = Model(device)
        self.commands = commands
        self.interval = interval
        self.column = sort
        self.descending = COLUMNS[sort].descending
        self.pattern = pattern
        self.paused = False
        self._reading = False
        self._said = ""
        self._line = asyncio.Lock()

    # -- parts -------------------------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[Any]:
        """See textual."""
        return Main(id="_default")

    def compose(self) -> ComposeResult:
        """See textual."""
        yield Static(id="head")
        yield Static(id="regions")
        with Grid(id="rates"):
            for rate in self.model.rates:
                yield RateBox(rate)
        yield BoList()
        yield Static(id="message", markup=False)
        yield Input(placeholder="part of a name, or wildcards; Enter keeps it, Escape clears it", compact=True)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """See textual."""
        self.query_one(BoList).focus()
        self.set_interval(self.interval, self.tick)
        self.call_after_refresh(self.tick)

    def tick(self) -> None:
        """Begin a refresh, unless one is under way."""
        if not self._reading and not self.paused:
            self._reading = True
            self.run_worker(self._while_shown(self._refresh()), exit_on_error=True)

    async def _while_shown(self, work: Coroutine[Any, Any, None]) -> None:
        """A worker may outlive the screen by a moment when the program ends: then nobody is left to see anything."""
        with contextlib.suppress(NoMatches):
            await work

    async def _refresh(self) -> None:
        sweep = COLUMNS[self.column].needs_status
        try:
            wanted = self.query_one(BoList).on_screen()
            reading: Reading = await in_thread(lambda: self.model.read(wanted, sweep))
        except MountError as error:
            if not error.hung:
                self.exit(error.message, return_code=error.status)
            self.say(error.message, bad=True)
            return
        except OSError as error:
            self.say(str(error), bad=True)
            return
        finally:
            self._reading = False
        self.model.take(reading)
        self.draw()

    def on_resize(self) -> None:
        """Lines are made for a width."""
        if self.model.samples:
            self.draw()

    def draw(self) -> None:
        """Everything anew from the model."""
        stats, width = self.model.stats, self.query_one("#regions").size.width or self.size.width
        self.query_one("#head", Static).update(header_line(self.model.device.mount, stats))
        self.query_one("#regions", Static).update(region_lines(stats.get("regions", {}), width))
        for box in self.query(RateBox):
            box.draw()
        self.draw_list()

    def draw_list(self) -> None:
        """Only the list, sorted and filtered."""
        rows = self.model.ordered(COLUMNS[self.column], self.descending, self.pattern)
        bos = self.query_one(BoList)
        bos.grouped = grouped(self.model.stats)
        bos.show_rows(rows, self.column, self.descending)
        if not self._said:
            hidden = len(self.model.rows) - len(rows)
            self.say(f"filter {self.pattern!r} hides {hidden}" if self.pattern else "", keep=False)

    def say(self, text: str, *, bad: bool = False, keep: bool = True) -> None:
        """The message line. What is kept stays until the next key."""
        self._said = text if keep else ""
        self.query_one("#message", Static).update(Text(f" {text}", "bold white on #b71c1c" if bad else ""))

    # -- keys --------------------------------------------------------------------------------------------------------

    def action_sort(self, column: int) -> None:
        """By a column; once more turns the order around."""
        same = column == self.column
        self.descending = not self.descending if same else COLUMNS[column].descending
        self.column = column
        self.draw_list()
        self.tick()

    def action_sort_next(self, by: int) -> None:
        """By the next column."""
        self.action_sort((self.column + by) % len(COLUMNS))

    def on_bo_list_sort_by(self, message: BoList.SortBy) -> None:
        """A header was clicked."""
        self.action_sort(message.column)

    def action_pause(self) -> None:
        """Stop or go on refreshing."""
        self.paused = not self.paused
        self.say("paused: space goes on" if self.paused else "")

    def action_filter(self) -> None:
        """Ask for a filter."""
        box = self.query_one(Input)
        box.value = self.pattern
        box.add_class("shown")
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed."""
        self.pattern = event.value
        self.say("")
        self.draw_list()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Enter."""
        self._leave_filter()

    def action_clear(self) -> None:
        """Escape: no filter, no message."""
        self.query_one(Input).value = self.pattern = ""
        self._leave_filter()
        self.say("")
        self.draw_list()

    def _leave_filter(self) -> None:
        self.query_one(Input).remove_class("shown")
        self.query_one(BoList).focus()

    def action_keys(self) -> None:
        """Show all keys, or not any more."""
        if self.screen.query(HelpPanel):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_detail(self) -> None:
        """The selected BO alone."""
        name = self.query_one(BoList).selected
        if name is None:
            self.say("no BO is selected")
        else:
            self.push_screen(Detail(self.model.device, name, self.interval))

    def action_groups(self) -> None:
        """What each group has."""
        self.push_screen(Groups(self.model.device, self.interval))

    def action_command(self, key: str) -> None:
        """A command on the selected BO."""
        name = self.query_one(BoList).selected
        if name is None:
            self.say("no BO is selected: `truncate -s 16M MNT/bo/a` makes one")
            return
        self.run_worker(self._while_shown(self._command(name, *_COMMANDS[key][:2])))

    async def _command(self, name: str, word: str, argument: str) -> None:
        what = f"{word} {argument}".strip()
        self.say(f"{what} {shown(name)} …")
        async with self._line:
            try:
                results = await in_thread(lambda: self.commands.command(f"objects/{name}/{word}", argument))
            except CommandFailed as error:
                self.say(f"{what} {shown(name)}: {error.code}: {error.why}", bad=True)
                return
            except MountError as error:
                self.say(error.message, bad=True)
                return
        facts = {key: value for key, value in (results[-1] if results else {}).items() if key != "ok"}
        text = "  ".join(f"{key} {value}" for key, value in facts.items())
        self.say(f"{what} {shown(name)}: done  {text}".rstrip())
        self.tick()
