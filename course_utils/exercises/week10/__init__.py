"""Exercises of week 10."""
