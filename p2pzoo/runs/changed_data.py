"""Whether the data of a run changed after it began: its pairs may then be in other splits or folds than today's."""

from __future__ import annotations

import json
from pathlib import Path

from p2pzoo.config.experiment import Experiment
from p2pzoo.data.pairing import SPLITS
from p2pzoo.models.load import find_model_file, find_run_folder
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.errors import UserError


class DataFingerprints:
    """Fingerprints of datasets, as `p2pzoo run` records them in status.json. Each dataset and fold is opened once."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def of(self, experiment: Experiment) -> dict[str, str]:
        """{split: fingerprint} of the experiment's data; {} of a dataset that has no fingerprint.

        Raises UserError if the data cannot be opened.
        """
        key = json.dumps(experiment.dataset.identity(), sort_keys=True)
        if key not in self._known:
            found = {split: getattr(experiment.dataset.build(split=split), "fingerprint", None) for split in SPLITS}
            self._known[key] = {split: str(fingerprint) for split, fingerprint in found.items() if fingerprint}
        return self._known[key]

    def find_changed(self, experiment: Experiment, run: Run) -> list[str]:
        """The names of the data that changed since the run began, such as "train data"; [] if it recorded none.

        Before 0.2 a run recorded the evaluated split as its test data, so that may be today's val.
        The data is opened only if the run recorded fingerprints. Raises UserError if it cannot be opened.
        """
        sources = run.status.get("sources", {})
        recorded = {split: sources[f"{split} data"] for split in SPLITS if f"{split} data" in sources}
        now = self.of(experiment) if recorded else {}
        evaluated = {now.get("test"), now.get("val")}
        return [
            f"{split} data"
            for split, fingerprint in recorded.items()
            if split in now and fingerprint not in (evaluated if split == "test" else {now[split]})
        ]


def describe_changed_train_data(model: Path, experiment: Experiment) -> str | None:
    """A line if the training data of a model's own run changed; None if not, or if the run recorded none.

    While they are the same, no image of another split trained the model. Copies of some datasets' files count as
    changed, since their dates do. None too if not all splits are here: data without the training images show nothing.

    model  a run's folder or its model file, as a path
    """
    run = Run(find_run_folder(find_model_file(model)))
    try:
        changed = DataFingerprints().find_changed(experiment, run)
    except UserError:
        return None
    if "train data" not in changed:
        return None
    return (
        "the data changed after this model was trained, so that images that trained it may be in another split now "
        "(train it again if it is not the same data in another place)"
    )
