"""The screen of ttm-top: regions, rates, the list of BOs, keys."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.widgets import Footer, Input, Static

from ttm_tools.bolist import BoList, place_colour
from ttm_tools.device import Device
from ttm_tools.errors import CommandFailed, MountError
from ttm_tools.threads import in_thread
from ttm_tools.topmodel import COLUMNS, Model, Rate, Reading
from ttm_tools.words import shown, size_text

_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_SPARKS: Final = "▁▂▃▄▅▆▇█"


def bar(part: float, width: int) -> str:
    """A bar of `width` characters, in eighths of one."""
    eighths = round(min(1.0, max(0.0, part)) * width * 8)
    if part > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[rest] if rest else "")).ljust(width)


def sparkline(values: list[float], width: int) -> str:
    """The last values as a line of blocks; the highest is full."""
    recent = values[-width:]
    top = max(recent, default=0.0)
    marks = "".join(_SPARKS[min(7, int(8 * value / top))] if top and value else "▁" for value in recent)
    return marks.rjust(width, " ")


def region_line(name: str, region: dict[str, int], width: int) -> Text:
    """`vram  █████     │        48M of 64M  75%   12 BOs  CPU sees 20M of 32M`; the mark is where its view ends."""
    size, used = region["size"], region["used"]
    visible, visible_used = region.get("visible_size", size), region.get("visible_used", used)
    wide = max(10, width - 68)
    share = used / size if size else 0.0
    text = Text(no_wrap=True)
    text.append(f" {name:<8.8} ", f"bold {place_colour(name)}")
    drawn = bar(share, wide)
    cut = round(wide * visible / size) if size and visible < size else -1
    background = "on #2a2f3a"
    if 0 <= cut < wide:
        text.append(drawn[:cut], f"{place_colour(name)} {background}")
        text.append("│", f"bold white {background}")
        text.append(drawn[cut + 1 :], f"{place_colour(name)} {background}")
    else:
        text.append(drawn, f"{place_colour(name)} {background}")
    text.append(f" {size_text(used):>6} of {size_text(size):<6} {100 * share:3.0f}%")
    text.append(f"  {region.get('bos', 0):>6} BOs")
    if visible < size:
        text.append(f"  CPU sees {size_text(visible_used)} of {size_text(visible)}", "dim")
    return text


def rates_line(rates: list[Rate]) -> Text:
    """Two lines of live rates."""
    text = Text(no_wrap=True)
    for number, rate in enumerate(rates):
        if number == 3:
            text.append("\n")
        text.append(f" {rate.name:<9}", "bold")
        text.append(f"{rate.text(rate.now):>6}/s ")
        text.append(sparkline(list(rate.history), 16), "#4fc3f7")
        text.append("   ")
    return text


def header_line(mount: str, stats: dict[str, Any]) -> Text:
    """Which mount, and what is pending."""
    bos, fences, requests = (stats.get(key, {}) for key in ("bos", "fences", "requests"))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" ttm-top  {mount}", "bold")
    text.append(f"   {bos.get('count', 0)} BOs")
    for key, value in (
        ("ghosts", bos.get("ghosts", 0)),
        ("fences pending", fences.get("pending", 0)),
        ("requests waiting", requests.get("waiting", 0)),
        ("failed moves", stats.get("moves", {}).get("failed", 0)),
    ):
        text.append(f"   {value} {key}", "" if value else "dim")
    return text


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


class Top(App[str]):
    """The program. Its result is a sentence when it had to end because the mount is gone."""

    CSS = """
    #head { height: 1; background: $panel; }
    #regions { height: auto; padding: 1 0 0 0; }
    #rates { height: 3; padding: 1 0 0 0; }
    BoList { height: 1fr; margin: 1 0 0 0; background: $surface; }
    #message { height: 1; }
    Input { height: 1; border: none; display: none; }
    Input.shown { display: block; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "ttm-top"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"command('{key}')", label) for key, (_, _, label) in _COMMANDS.items()),
        *(Binding(column.shift, f"sort({n})", column.name, show=False) for n, column in enumerate(COLUMNS)),
        Binding("less_than_sign", "sort_next(-1)", show=False),
        Binding("greater_than_sign", "sort_next(1)", "sort", key_display="< >"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("space", "pause", "pause"),
        Binding("escape", "clear", show=False),
        Binding("q", "quit", "quit"),
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

    def compose(self) -> ComposeResult:
        """See textual."""
        yield Static(id="head")
        yield Static(id="regions")
        yield Static(id="rates")
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

    def draw(self) -> None:
        """Everything anew from the model."""
        stats, width = self.model.stats, self.size.width
        self.query_one("#head", Static).update(header_line(self.model.device.mount, stats))
        lines = [region_line(name, region, width) for name, region in stats.get("regions", {}).items()]
        self.query_one("#regions", Static).update(Text("\n").join(lines))
        self.query_one("#rates", Static).update(rates_line(self.model.rates))
        self.draw_list()

    def draw_list(self) -> None:
        """Only the list, sorted and filtered."""
        rows = self.model.ordered(COLUMNS[self.column], self.descending, self.pattern)
        self.query_one(BoList).show_rows(rows, self.column, self.descending)
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
