"""The files of the package in the order in which they may import each other."""

from __future__ import annotations

# Each file may import those before it. "__init__" is the package itself: what it offers to users.
ORDER = (
    # what everything may use
    *("errors", "checks", "texts", "serialize", "inputs", "isolation", "layers", "distributed", "registry"),
    # the pipeline
    *(
        "trace",
        "fields",
        "rules",
        "coupling",
        "matrices",
        "stages",
        "moments",
        "calibration",
        "gradients",
        "importance",
        "select",
        "schedules",
        "plan",
        "depth",
        "history",
        "undo",
        "optimizers",
        "slicing",
        "tensor_files",
        "state",
        "prediction",
        "fitting",
    ),
    *("cost", "masking", "verify", "masks", "export", "analysis", "evaluate", "latency", "prices", "steps"),
    *("lockstep", "gauss_newton", "recover"),
    # what is shown
    *("rendering", "plots", "report", "records", "graph", "graph_plot"),
    # the front door, and what is built on it
    *(
        "pruner",
        "preview",
        "preview_plot",
        "coverage",
        "sensitivity",
        "search",
        "comparison",
        "comparison_plot",
        "__init__",
        "data",
        "models",
    ),
    *("recipe", "training_state", "training", "narrator", "widgets", "demo", "experiments", "cli", "__main__"),
)
# A package inside has its own order, and one place among the others.
INSIDE = {
    "rules": (
        *("context", "arithmetic", "contraction", "normalisation", "movement", "indexing", "probing"),
        *("layer", "recurrent", "__init__"),
    ),
    "experiments": (
        *("config", "results", "scenarios", "splits", "subjects", "checkpoints"),
        *(
            "tables",
            "showing",
            "figures",
            "pages",
            "document",
            "phrases",
            "workspace",
            "stages",
            "runner",
            "sweep_plot",
            "sweep",
        ),
        *("cut_study", "slides", "result_slides", "cut_slides", "presentation"),
        "__init__",
    ),
    "widgets": ("panel", "drawing", "graph_explorer", "importance_explorer", "pruning_explorer", "__init__"),
    "importance": ("group", "names", "weights", "activations", "gradients", "reconstruction", "mixes", "__init__"),
}
