"""A sheet of ttm-top: one text over the whole screen, read anew every interval."""

import contextlib
from abc import abstractmethod
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from ttm_tools.errors import MountError


class Sheet(ModalScreen[None]):
    """A subclass says what is on it."""

    DEFAULT_CSS = """
    Sheet { background: $surface; }
    Sheet VerticalScroll { padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "dismiss", "back", key_display="Escape"),
        Binding("q", "app.quit", "quit"),
    ]

    def __init__(self, name: str, interval: float) -> None:
        super().__init__()
        self.what = name
        self.interval = interval
        self._reading = False

    @abstractmethod
    async def text(self, width: int) -> Text:
        """What to show. MountError when the mount cannot be read; OSError when it is gone."""

    def compose(self) -> ComposeResult:
        """See textual."""
        with VerticalScroll():
            yield Static(f"{self.what} …", id="sheet", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """See textual."""
        self.set_interval(self.interval, self.tick)
        self.tick()

    def tick(self) -> None:
        """Read it, unless that is under way."""
        if not self._reading:
            self._reading = True
            self.run_worker(self._refresh())

    async def _refresh(self) -> None:
        try:
            self._show(await self.text(max(20, self.size.width - 4)))
        except MountError as error:
            self._show(Text(error.message, "bold white on #b71c1c"))
        except OSError:
            self._show(Text(f"{self.what} is gone: Escape goes back", "bold white on #b71c1c"))
        finally:
            self._reading = False

    def _show(self, text: Text) -> None:
        # What was read when somebody went back is nobody's to see.
        with contextlib.suppress(NoMatches):
            self.query_one("#sheet", Static).update(text)
