"""Measurements: cases and rivals as data, one stopwatch, records of what was measured, who serves each call."""
