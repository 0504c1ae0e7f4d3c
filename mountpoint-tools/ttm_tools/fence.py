"""Fence: what a job or a move of a device ends with, as a Python object."""

from typing import Any

from ttm_tools.device import Device as Files


class Fence:
    """What a job or a move ends with: `name` is CONTEXT:SEQNO, `result` what the command gave."""

    def __init__(self, files: Files, result: dict[str, Any]) -> None:
        self._files = files
        self.result = result
        self.name = str(result.get("fence", ""))

    def __repr__(self) -> str:
        return f"<fence {self.name}>"

    def wait(self, seconds: float | None = None) -> None:
        """Until it is signaled; `seconds` None: as long as a fault may wait. CommandFailed: ETIME, or its own error."""
        self._files.command("ctl/wait", self.name if seconds is None else f"{self.name} {seconds:f}")

    @property
    def signaled(self) -> bool:
        """Is it by now? CommandFailed with what it failed with."""
        try:
            self.wait(0)
        except OSError as error:
            if getattr(error, "code", "") == "ETIME":
                return False
            raise
        return True
