"""`ttmfs replay`: the words of the command line; what they do is in ttmfs.replay.study."""

import os
from typing import Any

import click

from ttmfs.errors import TtmError
from ttmfs.option_types import SIZE
from ttmfs.replay.study import Study

DEFAULT_EVICT = "lru,fifo,clock,sieve,slru,arc,s3fifo,belady"


class SizeList(click.ParamType[tuple[int, ...]]):
    """`8M,16M,32M`."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Bytes each."""
        if isinstance(value, tuple):
            return value
        return tuple(SIZE.convert(text, param, ctx) for text in str(value).split(","))


@click.command(epilog="docs/policies.md tells how to write a policy, and where the two engines differ and why.")
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--size", type=SIZE, help="Bytes of the region. [default: half of what all BOs of the trace need]")
@click.option("--sizes", type=SizeList(), help="Several: 8M,16M,32M. With --html these are miss-ratio curves.")
@click.option(
    "--evict", default=DEFAULT_EVICT, show_default=True, help="Eviction policies: NAME[,key=value...],NAME,..."
)
@click.option("--prefetch", default="none", show_default=True, help="Prefetch policies, written in the same way.")
@click.option(
    "--engine",
    type=click.Choice(["sizes", "device"]),
    default="sizes",
    show_default=True,
    help="Count only, or move real memory through the core.",
)
@click.option("--json", "as_json", is_flag=True, help='One object: {"rows": [...]}, sizes in bytes.')
@click.option(
    "--html", metavar="OUT", type=click.Path(dir_okay=False, writable=True), help="A page with curves, in one file."
)
@click.option(
    "--jobs", type=click.IntRange(1, 1024), help="Processes at the same time. [default: as many as processors]"
)
@click.option("--dask", metavar="ADDRESS", help="Run on the Dask cluster whose scheduler is there.")
@click.option("--block-bytes", type=SIZE, default="2M", show_default=True, help="Size of a BO where a trace says none.")
def replay(
    traces: tuple[str, ...],
    size: int | None,
    sizes: tuple[int, ...] | None,
    evict: str,
    prefetch: str,
    engine: str,
    as_json: bool,
    html: str | None,
    jobs: int | None,
    dask: str | None,
    block_bytes: int,
) -> None:
    """Run recorded traces through eviction and prefetch policies, without a mount, and compare.

    Each request of a trace is a use of a BO in one region: a hit if it is there, else it comes in and others go, as the
    policy says. `belady` knows the future: no policy misses less (where all BOs are of one size).

    \b
    ttmfs replay day.trace                               eight policies in half of what the trace needs
    ttmfs replay day.trace --size 64M --evict lru,quota,by=group
    ttmfs replay day.trace --evict lru,./mine.py:Mine    one of your own against lru
    ttmfs replay day.trace --sizes 16M,32M,64M,128M --html curves.html
    ttmfs replay faults.trace --prefetch none,tree       a trace of page faults
    ttmfs replay day.trace --engine device               with memory, moves and fences

    TRACE is what `ttm-trace record` wrote or a copy of MNT/trace; text of ftrace with events of xe, amdgpu or i915;
    libCacheSim's csv or oracleGeneral; lines of JSON with hash_ids (KV caches); lines of time,id,bytes. Its content
    says which; any of them may be compressed with zstd.

    A terminal gets a table, a pipe lines with tabs between. miss ratio: requests that did not find their BO. byte miss
    ratio: their bytes. moved: bytes into the region and out of it. policy us: time a request spends in the policy's
    code. Every trace runs under every policy in every size, on all processors, with --dask on all workers of a cluster.
    """
    if size is not None and sizes is not None:
        raise click.UsageError("--size and --sizes exclude each other")
    if dask is not None and jobs is not None:
        raise click.UsageError("--jobs is for this machine: with --dask the cluster says how many there are")
    wanted = sizes if sizes is not None else () if size is None else (size,)
    if 0 in wanted:
        raise click.UsageError("a region of 0 bytes holds nothing: say at least 4K")
    try:
        study = Study.plan(traces, wanted, evict, prefetch, engine, block_bytes)
        study.run(jobs or len(os.sched_getaffinity(0)), dask)
        if html is not None:
            study.write_html(html)
        study.show(as_json=as_json)
    except TtmError as error:
        raise click.ClickException(error.message) from None
