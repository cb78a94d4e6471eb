"""Rewrites of the float graph that lower the error of what is rounded afterwards."""
