"""Explorers: one tool to play with per week, called by name (`explorers.stride_lens()`)."""

from course_utils.explorers.graph_walker import graph_walker
from course_utils.explorers.kill_and_resume import kill_and_resume
from course_utils.explorers.loader_timeline import loader_timeline
from course_utils.explorers.loop_simulator import loop_simulator
from course_utils.explorers.loss_explorer import loss_explorer
from course_utils.explorers.number_microscope import number_microscope
from course_utils.explorers.optimizer_race import optimizer_race
from course_utils.explorers.recompute_and_recompile import recompute_and_recompile
from course_utils.explorers.resume_laboratory import resume_laboratory
from course_utils.explorers.scaling_simulator import scaling_simulator
from course_utils.explorers.signal_through_depth import signal_through_depth
from course_utils.explorers.stride_lens import stride_lens
from course_utils.explorers.symptom_board import symptom_board

__all__ = [
    "graph_walker",
    "kill_and_resume",
    "loader_timeline",
    "loop_simulator",
    "loss_explorer",
    "number_microscope",
    "optimizer_race",
    "recompute_and_recompile",
    "resume_laboratory",
    "scaling_simulator",
    "signal_through_depth",
    "stride_lens",
    "symptom_board",
]
