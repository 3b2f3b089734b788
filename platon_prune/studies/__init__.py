"""A grid of runs: each done once, whatever interrupts it, with tables and pictures."""
