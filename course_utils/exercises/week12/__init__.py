"""Exercises of week 12."""
