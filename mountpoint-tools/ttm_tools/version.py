"""The version, ttmfs's: they are one package."""

__version__ = "0.1.0"
