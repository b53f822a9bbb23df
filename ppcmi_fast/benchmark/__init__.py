"""Timing of the operators against what a user would take instead: `ppcmi bench`, the figures of docs/performance.md."""
