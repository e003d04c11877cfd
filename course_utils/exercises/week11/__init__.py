"""Exercises of week 11."""
