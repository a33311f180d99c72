"""The settings of every training here, by name, as `--set` takes them.

None was chosen by a test figure of this bench; the page says how they were chosen.
"""

from __future__ import annotations

import math

from bench.accuracy.jobs import Settings

SERIES: Settings = {
    "data.samples": "",
    "data.column.name": "label",
    "data.split_column.name": "split",
    "resources.device": "CPU",
}
"""Labelled series with the archives' own split."""

UNBALANCED: Settings = {
    "balancing.use_focal_loss": "false",
    "balancing.use_class_weights": "false",
    "balancing.use_oversampling": "false",
}
WEIGHTED: Settings = UNBALANCED | {"balancing.use_class_weights": "true"}

BALANCING: dict[str, Settings] = {
    "none": UNBALANCED,
    "class weights": WEIGHTED,
    "focal loss": UNBALANCED | {"balancing.use_focal_loss": "true"},
    "oversampling": UNBALANCED | {"balancing.use_oversampling": "true"},
    "all three (defaults)": {},
}
"""What the ablation compares; everything else is the same in all of them."""

_ALL_EPOCHS: Settings = {
    "trainer.scheduler_type": "COSINE",
    "trainer.early_stopping_patience": "0",
}

MINI_ROCKET: Settings = _ALL_EPOCHS | {
    "model.mini_rocket": "",
    "model.dropout": "0",
    "trainer.learning_rate": "0.00001",
    "trainer.batch_size": "64",
    "trainer.epochs": "5",
    "trainer.label_smoothing": "0",
    "trainer.use_augmentation": "false",
}
INCEPTION_TIME: Settings = _ALL_EPOCHS | {
    "model.inception_time": "",
    "model.dropout": "0.2",
    "trainer.learning_rate": "0.001",
    "trainer.batch_size": "8",
    "trainer.epochs": "100",
    "trainer.label_smoothing": "0",
    "trainer.use_augmentation": "false",
}
HYBRID: Settings = _ALL_EPOCHS | {
    "model.hybrid_cnn_lstm.conv_blocks": "4",
    "model.hybrid_cnn_lstm.kernel_size": "9",
    "model.hybrid_cnn_lstm.normalization": "INSTANCE_NORM",
    "model.hybrid_cnn_lstm.pool_size": "4",
    "model.hybrid_cnn_lstm.convolution_head": "true",
    "model.hybrid_cnn_lstm.channel_noise": "0.2",
    "model.dropout": "0.1",
    "trainer.learning_rate": "0.001",
    "trainer.batch_size": "8",
    "trainer.epochs": "200",
}
"""The default network on small training sets."""
HYBRID_STEPS = 3000
"""What it takes at least: of few series that is more epochs."""

SMALL_HYBRID: Settings = {
    "model.hybrid_cnn_lstm.conv_channels": "32",
    "model.hybrid_cnn_lstm.lstm_hidden_size": "24",
    "model.hybrid_cnn_lstm.attention_heads": "2",
    "trainer.early_stopping_metric": "VAL_MACRO_F1",
}
"""Cheap enough for many seeds and variants."""

_FEW_VALIDATE: Settings = {"data.split_column.validation_fraction": "0.05"}
# Three series that validate pick an epoch nearly by chance; of the last one they choose nothing.
_LAST_EPOCH: Settings = {"trainer.early_stopping_metric": "LAST_EPOCH"} | _FEW_VALIDATE

LITERATURE: dict[str, Settings] = {
    # Leaving one out chose the strength of the ridge: validation has only the epoch to choose.
    "mini_rocket": MINI_ROCKET | UNBALANCED | _FEW_VALIDATE,
    "inception_time": INCEPTION_TIME | UNBALANCED | _LAST_EPOCH,
    "hybrid_cnn_lstm": HYBRID | UNBALANCED | _LAST_EPOCH,
}
"""By model."""

ABLATION: dict[str, dict[str, Settings]] = {
    "ECG5000": {
        "hybrid_cnn_lstm": SMALL_HYBRID
        | _ALL_EPOCHS
        | {"trainer.learning_rate": "0.001", "trainer.batch_size": "32", "trainer.epochs": "40"},
        "mini_rocket": MINI_ROCKET | {"trainer.early_stopping_metric": "VAL_MACRO_F1"},
    },
    "stocks": {
        "hybrid_cnn_lstm": SMALL_HYBRID
        | {
            "trainer.learning_rate": "0.0003",
            "trainer.epochs": "10",
            "trainer.early_stopping_patience": "5",
        },
        "mini_rocket": MINI_ROCKET | {"trainer.early_stopping_metric": "VAL_MACRO_F1"},
    },
}
"""By data and model; the balancing comes on top."""

MARKET: dict[str, Settings] = {
    "mini_rocket": MINI_ROCKET | WEIGHTED | {"trainer.early_stopping_metric": "VAL_MACRO_F1"},
    "hybrid_cnn_lstm": {
        "trainer.epochs": "10",
        "trainer.learning_rate": "0.0003",
        "trainer.early_stopping_patience": "5",
        "trainer.early_stopping_metric": "VAL_MACRO_F1",
    },
}
"""On prices; the hybrid with the default balancing."""


def literature(model: str, training_series: int) -> Settings:
    """The settings of a model beside published figures, for so many series."""
    settings = LITERATURE[model]
    if model != "hybrid_cnn_lstm":
        return settings
    steps = math.ceil(training_series / int(settings["trainer.batch_size"]))
    epochs = max(int(settings["trainer.epochs"]), math.ceil(HYBRID_STEPS / steps))
    return settings | {"trainer.epochs": str(epochs)}


def hold_out(training_series: int) -> Settings:
    """What validates of a training part: of less than 100 series every one counts."""
    fraction = "0.1" if training_series < 100 else "0.2"
    return {"data.split_column.validation_fraction": fraction}
