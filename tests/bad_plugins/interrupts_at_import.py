"""Raises at import what stands for Ctrl-C."""

raise KeyboardInterrupt
