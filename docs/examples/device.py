"""A device from Python: cells of a notebook, or a script."""

import ttm_tools

# %% A device with 16 MiB of vram, until the block ends.
with ttm_tools.Device.mount(vram="16M") as dev:
    # %% Six textures of 4 MiB go to vram, which has room for four.
    for number in range(6):
        dev.bo(f"tex{number}", size="4M", placement="vram").write(b"pixels")

    # %% Where they are now.
    for bo in dev.bos:
        print(bo.name, bo.status["mem_type"], "evicted", bo.status["evictions"], "times")

    # %% Where their pages are: a matplotlib Figure.
    dev.draw("vram", "gtt", path="pages.png")

    # %% What fails says why.
    try:
        dev.bo("tex0").validate("vram@0-9")
    except OSError as error:
        print(error)
