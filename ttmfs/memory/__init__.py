"""Arenas, buddy, page pool, backup stores and page copy: the memory that everything above hands out."""
