"""Programs for a ttmfs device that use nothing but its mount: ttm-ls, ttm-top, ttm-map, ttm-trace, ttm-storm."""

__version__ = "0.1.0"
