"""Events, counters and exporters: imported by all, imports none."""
