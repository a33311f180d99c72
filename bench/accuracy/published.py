"""What others report: accuracy on the archives' own test part, in per cent.

From the results of the tsml research group (fold 0 is the archives' own split), at
https://github.com/time-series-machine-learning/tsml-eval under `results/`:
`tsml/ByClassifier/ResNet_TESTFOLDS.csv`, `classification/Univariate/InceptionT_ACC.csv` and
`classification/Univariate/MiniROCKET_accuracy.csv`; for BasicMotions the files of the multivariate
comparison there. `InceptionT` is an ensemble of five networks.
"""

from __future__ import annotations

RESNET, INCEPTION, MINI_ROCKET = "ResNet", "InceptionTime", "MiniRocket"

PUBLISHED: dict[str, dict[str, float]] = {
    "ItalyPowerDemand": {RESNET: 96.5, INCEPTION: 96.6, MINI_ROCKET: 96.3},
    "GunPoint": {RESNET: 99.3, INCEPTION: 100.0, MINI_ROCKET: 99.3},
    "ArrowHead": {RESNET: 81.1, INCEPTION: 86.3, MINI_ROCKET: 86.3},
    "ECG5000": {RESNET: 93.3, INCEPTION: 94.2, MINI_ROCKET: 94.5},
    "DistalPhalanxOutlineAgeGroup": {RESNET: 67.6, INCEPTION: 73.4, MINI_ROCKET: 73.4},
    "ChlorineConcentration": {RESNET: 84.8, INCEPTION: 87.6, MINI_ROCKET: 75.5},
    "BasicMotions": {RESNET: 100.0, INCEPTION: 100.0},
    "JapaneseVowels": {},
    "CBF": {RESNET: 99.4, INCEPTION: 99.9, MINI_ROCKET: 99.9},
    "Coffee": {RESNET: 100.0, INCEPTION: 100.0, MINI_ROCKET: 100.0},
    "ECG200": {RESNET: 87.0, INCEPTION: 91.0, MINI_ROCKET: 91.0},
    "ECGFiveDays": {RESNET: 98.1, INCEPTION: 100.0, MINI_ROCKET: 100.0},
    "FaceFour": {RESNET: 95.5, INCEPTION: 95.5, MINI_ROCKET: 98.9},
}
"""By set and classifier; what nobody published is not there."""
