"""Which patient a pair is of, under which number, and in which split. The names of patients stay in here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from p2pzoo.data.pairing import Files
from p2pzoo.data.splits import Fractions, Splits, assign_splits
from p2pzoo.utils.errors import UserError
from p2pzoo_medical.body import Body
from p2pzoo_medical.slices import VolumePair
from p2pzoo_medical.volume import Volume


class PatientRule:
    """How to know the patient of a pair: by DICOM's PatientID, else by the name of the files.

    pattern  a regular expression for it: its first group, or the whole match, is the patient. None: the whole text

    What it finds is never shown. Raises ValueError for a pattern that is no regular expression.
    """

    def __init__(self, pattern: str | None) -> None:
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ValueError(f'patient = "{pattern}" is no regular expression: {error}') from None

    def find(self, name: str, x: Volume, y: Volume) -> str:
        """Raises UserError for a pair of two patients, and where the pattern matches nothing."""
        texts = [volume.patient for volume in (x, y) if volume.patient]
        patients = {self._match(text, x.path, "PatientID") for text in texts}
        if len(patients) > 1:
            raise UserError(
                f"{x.path} and {y.path}: are of two patients (PatientID): pair the series of one patient, or name what "
                "they share with `patient`"
            )
        return patients.pop() if patients else self._match(name, x.path, "name")

    def _match(self, text: str, path: Path, what: str) -> str:
        if self._pattern is None:
            return text
        found = self._pattern.search(text)
        if found is None:
            raise UserError(
                f'{path}: its {what} does not match patient = "{self._pattern.pattern}": change the expression'
            )
        return str(found.group(1) if self._pattern.groups else found.group())


def number_pairs(
    opened: Sequence[tuple[str, str, Volume, Volume, Body | None]],
) -> tuple[list[VolumePair], dict[str, tuple[str, str]]]:
    """The pairs, sorted by patient, and {id of a pair: (sub-folder, key of its patient)}.

    opened  (patient, sub-folder, x, y, body mask) of each pair

    Numbers follow the sorted patients. A hash of a patient is its key and decides its split; it is in no file.
    """
    numbers = {patient: number for number, patient in enumerate(sorted({each[0] for each in opened}), 1)}
    digits = max(2, len(str(len(numbers))))
    pairs: list[VolumePair] = []
    keys: dict[str, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for patient, sub, x, y, body in sorted(opened, key=lambda each: (each[0], str(each[2].path))):
        block = f"patient-{numbers[patient]:0{digits}d}"
        counts[block] = counts.get(block, 0) + 1
        id = block if counts[block] == 1 else f"{block}-{counts[block]}"
        pairs.append(VolumePair(id, block, x, y, body))
        key = hashlib.sha256(patient.encode(errors="surrogateescape")).hexdigest()[:24]
        keys[id] = (sub, f"{sub}-{key}" if sub else key)
    return pairs, keys


def assign_patients(keys: Mapping[str, tuple[str, str]], where: str, fractions: Fractions, seed: int) -> Splits:
    """{split: {key of a patient: ()}}. Raises UserError where a split that should have patients has none."""
    patients: dict[str, dict[str, Files]] = {}
    for sub, key in keys.values():
        patients.setdefault(sub, {})[key.removeprefix(f"{sub}-")] = ()
    remedy = "add patients, or change fractions"
    return assign_splits(patients, where, fractions, seed, unit="patient", remedy=remedy)
