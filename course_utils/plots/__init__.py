"""Figures of the course: each is a function of data and returns a `Figure` with alt text.

`plots.strides(tensor)` and its siblings are found by name; their modules, and matplotlib, load on first use.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "memory": (
        "tensor_anatomy", "strides", "view_decision", "number_line", "picked_cells", "broadcasting", "shared_block",
    ),
    "lines": ("curves", "loss_curves"),
    "autograd": ("autograd_graph", "backward_node", "gradient_bars", "gradient_cuts", "versions"),
    "modules": (
        "module_tree", "attribute_table", "wirings", "freezing", "call_pipeline", "repeated_predictions",
    ),
    "losses": (
        "reductions", "batch_areas", "signed_table", "cliffs", "minima", "panels", "best_constants",
    ),
    "optimizers": (
        "grad_timeline", "descent_paths", "parameter_groups", "schedules", "clipped_gradients", "range_test",
        "compare_runs",
    ),
    "loading": (
        "loader_pipeline", "epoch_bars", "padded_batch", "deliveries", "gantt", "class_shares", "image_batch",
    ),
    "checkpoints": (
        "state_dict_map", "resume_timeline", "crash_outcomes", "two_doors", "name_classes", "generator_reels",
        "partings", "reproducibility_ladder",
    ),
    "precision": (
        "magnitude_zones", "promotion", "dtype_flow", "gradient_exponents", "amp_step", "copy_timelines", "memory_bars",
    ),
    "training": (
        "loop_ring", "mode_grid", "batch_weights", "live_tensors", "accumulation_windows", "early_stopping",
        "confusion_matrix", "worst_mistakes",
    ),
    "debugging": (
        "losses_with_levels", "call_order", "activation_ranges", "gradient_norms", "saved_for_backward", "influence",
        "ward",
    ),
    "compiling": (
        "memory_timelines", "recompute_lanes", "captured_lines", "compilations", "differences", "exported_program",
    ),
    "distributed": ("ranks", "shards", "ring", "buckets", "calls", "message_times"),
    "capstone": ("class_counts", "epoch_address", "guarded_norms", "survival"),
    "figure": ("Figure",),
}  # fmt: skip
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"plots has no figure {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
