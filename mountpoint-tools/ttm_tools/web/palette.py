"""Colours of the page: told apart also by people who see no red or no green, and in grey by their lightness.

BOs have the colours of Okabe and Ito and lighter and darker ones of them, by their names. There are more BOs than
colours, so two may have the same one: a line is between neighbours, and the BO that is selected is outlined. Orders and
latencies are on cividis, which rises in lightness from end to end for every kind of sight.
"""

from typing import Any, Final

_OKABE_ITO: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#4a1fb8")

_CIVIDIS: Final = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip

PALETTE: Final[dict[str, Any]] = {
    "bos": _OKABE_ITO,
    "scale": _CIVIDIS,
    "free": "#1b2230",
    "ghost": "#ffffff",
    "pool": "#4a5366",
    "addresses": "#6d7f8f",
    "letters": {
        ".": ["#1b2230", "hole"],
        "s": ["#009e73", "system"],
        "g": ["#e69f00", "gtt"],
        "v": ["#56b4e9", "vram"],
        "b": ["#cc79a7", "store"],
        "m": ["#f0e442", "moving"],
    },
}
