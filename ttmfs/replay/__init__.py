"""Replay: recorded traces through eviction and prefetch policies, without a mount (`ttmfs replay`)."""
