"""SparseBytes: what a file's bytes must be, as pages that were written; the rest is zeros and takes no memory."""

PAGE = 4096


class SparseBytes:
    """`size` bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._pages: dict[int, bytearray] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes, fewer at the end."""
        out = bytearray(max(0, min(size, self.size - offset)))
        for number, page in self._near(offset, len(out)):
            low, high = max(offset, number * PAGE), min(offset + len(out), (number + 1) * PAGE)
            out[low - offset : high - offset] = page[low - number * PAGE : high - number * PAGE]
        return bytes(out)

    def _near(self, offset: int, size: int) -> list[tuple[int, bytearray]]:
        numbers = range(offset // PAGE, (offset + size + PAGE - 1) // PAGE)
        return [(number, self._pages[number]) for number in numbers if number in self._pages]

    def write(self, offset: int, data: bytes) -> None:
        """All of `data`, growing the file if it ends behind it."""
        self.size = max(self.size, offset + len(data))
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, PAGE)
            take = min(PAGE - at, len(data) - done)
            page = self._pages.setdefault(number, bytearray(PAGE))
            page[at : at + take] = data[done : done + take]
            done += take

    def truncate(self, size: int) -> None:
        """What is cut off is zeros when the file grows again."""
        last, at = divmod(size, PAGE)
        for number in [number for number in self._pages if number >= last]:
            if number > last or not at:
                del self._pages[number]
            else:
                self._pages[number][at:] = bytes(PAGE - at)
        self.size = size

    def written(self) -> list[int]:
        """Numbers of the pages that were written, ascending."""
        return sorted(self._pages)
