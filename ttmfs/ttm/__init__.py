"""The TTM core: buffer objects, page vectors, placement, managers, validate, evict, move, faults."""
