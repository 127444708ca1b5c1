"""The titles of the sections, and what one sees in them and what it means."""

CAPTIONS: dict[str, tuple[str, str]] = {
    "scores": (
        "Scores",
        "Validation is the one with the best main metric, the first column, of the network as it was trained. Test, "
        "where there is one, was read at the end, and is of what the checkpoint serves.",
    ),
    "evaluations": (
        "New tables",
        "The metrics of the checkpoint on tables that the run has not seen, as evaluate --report has measured them, "
        "each with the interval in which 95 % of its bootstrap draws lie.",
    ),
    "curves": (
        "Losses and metrics",
        "Dashed lines mark where a part unfreezes. A validation loss that rises while the training loss falls is "
        "overfitting. A click on a name hides or shows its line, a double click shows it alone.",
    ),
    "timeline": (
        "What trained when",
        "A bar for each part, or stage of a part, from the step on from which it trains. What has no bar kept its "
        "weights.",
    ),
    "rates": (
        "Learning rates",
        "Of each group of weights, in the color of its part; dashes tell the stages of a part apart. A frozen group "
        "has a rate, too, but does not move.",
    ),
    "gradients": (
        "Gradient norms",
        "Of each part, before clipping and, where something was clipped, dotted after it. A part whose norm is far "
        "below the others hardly learns; one that jumps at an unfreezing may need a lower rate or a warm-up.",
    ),
    "updates": (
        "Size of the steps",
        "How far one step moves the weights of each part, as a share of their norm. About 0.001 is usual, 0.01 is "
        "much.",
    ),
    "drift": (
        "Drift",
        "How far parts have moved from where they started (‖w − w₀‖ / ‖w₀‖), and how similar their features still "
        "are to those of the start (linear CKA; 1 is the same).",
    ),
    "parts": (
        "Part by part",
        "Accuracy or R² on {rows}. Alone: a ridge regression on the features of the part, as the end of the run "
        "compares it. Without it: the network where the part is missing in all rows. What costs nothing to leave "
        "out may be left out.",
    ),
    "confusion": (
        "Confusion matrix",
        "Of {rows}, as the checkpoint decides. The diagonal is right; colors are shares of each true class.",
    ),
    "ranking": (
        "ROC and precision–recall",
        "Of {rows}, each class against the others, with the area below its curve (AUROC, average precision). Where a "
        "class is rare, look at precision and recall: ROC flatters. Of more than 12 classes the most frequent are "
        "shown. Of several runs or tables, the first figures have the mean over these, each of which counts alike.",
    ),
    "reliability": (
        "Reliability",
        "Of {rows}. On the diagonal what is said with 80 % is right in 80 % of cases; below it the model is too sure. "
        "Large points hold many predictions.",
    ),
    "residuals": (
        "Predicted against true, and residuals",
        "Of {rows}. On the diagonal a prediction is right. Errors that grow with the number ask for transform: log.",
    ),
    "samples": (
        "Samples with the largest loss",
        "Where the model is most wrong, of {rows}. Often these are wrong labels, broken files, or a kind of sample "
        "that the training rows lack.",
    ),
    "data": (
        "Data",
        "Rows of each split, how many of them lack a modality, and how the classes are distributed.",
    ),
    "differences": (
        "What differs",
        "The settings that are not the same in all of these runs.",
    ),
    "machine": (
        "Versions and machine",
        "Where the run ended, or the rows were predicted.",
    ),
    "config": (
        "Config",
        "All settings of the run, as its folder has them.",
    ),
}
"""Key of a section → title and caption; ``{rows}`` stands for what was predicted, such as "120 validation rows"."""
