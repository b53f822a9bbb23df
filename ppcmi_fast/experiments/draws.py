"""Who is in which part of the data of planned runs, as it is drawn now."""

from __future__ import annotations

from ppcmi_fast.data.records import Dataset
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import read_dataset
from ppcmi_fast.federation.run import check_data, draw_split
from ppcmi_fast.federation.runfolder import Parts


class Draws:
    """Splits of runs; what several of them read alike is read once."""

    def __init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}

    def of(self, config: RunConfig) -> Parts:
        """Part -> site -> subjects, as a run with these settings would note it in split.json.

        Raises:
            PpcmiError: the data cannot be read or divided, or is none for a run with these settings.
        """
        read_by = config.model_dump_json(include={"data", "classes", "reading", "seed"})
        if read_by not in self._datasets:
            self._datasets[read_by] = read_dataset(config)
        dataset = self._datasets[read_by]
        check_data(config, dataset)
        return draw_split(config, dataset).to_json()
