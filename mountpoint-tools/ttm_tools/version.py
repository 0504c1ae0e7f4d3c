"""The version of ttm-tools."""

__version__ = "0.1.0"
