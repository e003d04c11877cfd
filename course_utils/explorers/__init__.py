"""Explorers: one tool to play with per week, called by name (`explorers.stride_lens()`)."""

from course_utils.explorers.graph_walker import graph_walker
from course_utils.explorers.stride_lens import stride_lens

__all__ = ["graph_walker", "stride_lens"]
