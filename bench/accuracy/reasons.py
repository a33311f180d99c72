"""Why a bar is not reached, by the model; shown for the bars that fail and for no others."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "mini_rocket": (
        "Its features, and the ridge that its layer begins at, are the published ones. What "
        "differs are the series that validate, the chance by which biases are drawn, and five "
        "epochs of small steps; the deviations beside the figures say how much chance does."
    ),
    "inception_time": (
        "The published classifier is an ensemble of five such networks, learned from all series; "
        "this is one of them, with one seed. A series more or less in ArrowHead or GunPoint is 0.1 "
        "or 0.2 points of the mean."
    ),
    "hybrid_cnn_lstm": (
        "ChlorineConcentration is beyond it (61 beside 85; 73 with the recipe before, of one head "
        "and no noise on channels). Elsewhere it lacks a few tenths of a point or one series, by "
        "which three seeds differ. `mini_rocket` is the safer model for small sets."
    ),
}
