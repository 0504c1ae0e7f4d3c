"""Fences made of fences: dma_fence_array, dma_fence_chain, and what takes them apart (dma_fence_unwrap).

A container watches its parts from the moment it is made and is signaled in the same call as the part that
completes it. It holds no callback on anything once it is signaled, and a chain lets go of its signaled links, so
that a long history costs nothing. Chains of any length and containers in containers are walked without recursion.
"""

import errno
from collections import deque
from collections.abc import Iterable, Iterator

from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence, context_alloc, get_stub

_complete: deque[tuple[Fence, int]] = deque()
_signaling = False


def _signal_container(fence: Fence, error: int) -> None:
    """Signals a complete container; those that it completes in turn follow one after another.

    Through a queue, because ten thousand links that complete each other would be as many Python frames.
    """
    global _signaling  # noqa: PLW0603 - there is one thread and one queue
    _complete.append((fence, error))
    if _signaling:
        return
    _signaling = True
    raised: list[Exception] = []
    try:
        while _complete:
            container, why = _complete.popleft()
            try:
                container.signal(why)
            except Exception as exc:
                raised.append(exc)
    finally:
        _signaling = False
    if raised:
        raise raised[0] if len(raised) == 1 else ExceptionGroup("callbacks of containers failed", raised)


class FenceArray(Fence):
    """A fence for several (dma_fence_array): signaled when all are, or with `any` when the first is.

    Its error is the first one that a part signaled with; with `any`, the error of the first to be signaled. The
    array has a context of its own unless told one. `fences` is a tuple, without repetitions.

    AssertionError when there is no fence at all.
    """

    __slots__ = ("_first_error", "_pending", "any", "fences")

    def __init__(self, fences: Iterable[Fence], any: bool = False, context: int | None = None, seqno: int = 1) -> None:
        super().__init__(context_alloc() if context is None else context, seqno, "array")
        self.fences = tuple(dict.fromkeys(fences))
        if not self.fences:
            raise AssertionError("an array of no fences would never be signaled")
        self.any = any
        self.deps = self.fences
        self._pending = 1 if any else len(self.fences)
        self._first_error = 0
        for fence in self.fences:
            if not fence.add_callback(self._part_signaled):
                self._count(fence)
        if not self._pending:
            self._forget_parts()
            self.signal(self._first_error)

    def _count(self, fence: Fence) -> None:
        if self._pending:
            self._first_error = self._first_error or fence.error
            self._pending -= 1

    def _forget_parts(self) -> None:
        if self.any:
            for fence in self.fences:
                fence.remove_callback(self._part_signaled)

    def _part_signaled(self, fence: Fence) -> None:
        if self._pending:
            self._count(fence)
            if not self._pending:
                self._forget_parts()
                _signal_container(self, self._first_error)


class FenceChain(Fence):
    """A link of a chain (dma_fence_chain): signaled when `fence` and every earlier link are.

    With `seqno` beyond that of `prev`, itself a link, the new link continues prev's context; otherwise it starts
    a context of its own (and its seqno is never below prev's). `prev` becomes None once it is signaled, so a
    chain is as long as what is pending of it. The error is that of the earliest link that had one; the kernel
    drops it there (a wart: whoever waits for the end of a chain would believe that all went well).

    AssertionError when `fence` is itself a chain.
    """

    __slots__ = ("_prev_error", "fence", "prev", "prev_seqno")

    def __init__(self, prev: Fence | None, fence: Fence, seqno: int) -> None:
        if isinstance(fence, FenceChain):
            raise AssertionError("a link of a chain cannot hold a chain")
        context = 0
        prev_seqno = 0
        if isinstance(prev, FenceChain):
            if seqno > prev.seqno:
                context, prev_seqno = prev.context, prev.seqno
            else:
                seqno = prev.seqno
        super().__init__(context or context_alloc(), seqno, "chain")
        self.prev_seqno = prev_seqno
        self.fence = fence
        self.prev = prev
        self._prev_error = 0
        self.deps = (fence,) if prev is None else (fence, prev)
        if prev is not None and not prev.add_callback(self._prev_signaled):
            self._forget_prev(prev)
        if not fence.add_callback(self._fence_signaled) and self.prev is None:
            self.signal(self._prev_error or fence.error)

    def _forget_prev(self, prev: Fence) -> None:
        self._prev_error = prev.error
        self.prev = None
        self.deps = (self.fence,)

    def _prev_signaled(self, prev: Fence) -> None:
        self._forget_prev(prev)
        self._finish_if_complete()

    def _fence_signaled(self, _: Fence) -> None:
        self._finish_if_complete()

    def _finish_if_complete(self) -> None:
        if self.prev is None and self.fence.signaled:
            self.fence.remove_callback(self._fence_signaled)
            _signal_container(self, self._prev_error or self.fence.error)

    def find_seqno(self, seqno: int) -> Fence:
        """The oldest link that stands for `seqno` (dma_fence_chain_find_seqno); 0 is the link itself.

        A link that was let go because it is signaled is answered with the signaled stub.
        TtmError(EINVAL) when `seqno` lies beyond this link's.
        """
        if seqno == 0:
            return self
        if seqno < 0 or seqno > self.seqno:
            raise TtmError(errno.EINVAL, f"the chain ends at {self.seqno}: it has no point {seqno}")
        link = self
        while link.prev_seqno >= seqno:
            prev = link.prev
            if not isinstance(prev, FenceChain) or prev.context != self.context:
                return get_stub()
            link = prev
        return link


def unwrap(fence: Fence | None) -> Iterator[Fence]:
    """The plain fences in `fence`, containers taken apart: arrays in order, chains from the newest link back.

    Signaled fences come too, except those of links that a chain has let go. None has no fences.
    """
    stack = [] if fence is None else [fence]
    while stack:
        top = stack.pop()
        if isinstance(top, FenceArray):
            stack.extend(reversed(top.fences))
        elif isinstance(top, FenceChain):
            if top.prev is not None:
                stack.append(top.prev)
            stack.append(top.fence)
        else:
            yield top


def merge(*fences: Fence | None) -> Fence:
    """One fence for all that is pending in `fences` (dma_fence_unwrap_merge).

    Containers are taken apart, signaled fences dropped, of each context only the newest is kept (of context 0
    all). None left: the signaled stub. One: that very fence. Several: an array sorted by context.
    """
    newest: dict[int, Fence] = {}
    unordered: dict[Fence, None] = {}
    for container in fences:
        for fence in unwrap(container):
            if fence.signaled:
                continue
            if fence.context == 0:
                unordered[fence] = None
                continue
            known = newest.get(fence.context)
            if known is None or fence.is_later(known):
                newest[fence.context] = fence
    left = [*unordered, *(newest[context] for context in sorted(newest))]
    if not left:
        return get_stub()
    return left[0] if len(left) == 1 else FenceArray(left)
