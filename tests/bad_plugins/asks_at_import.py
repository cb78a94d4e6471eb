"""Asks who is there at import."""

LICENCE = input("Licence key: ")
