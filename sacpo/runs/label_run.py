"""Exports stored answers for human labels, and reads the labels back into a results folder."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from sacpo.errors import SacpoError
from sacpo.reporting.write import write_report
from sacpo.results.labels import LABELS_FILE, human_tables, label_sheet, read_labels
from sacpo.results.load import load_folder
from sacpo.store.backends import LocalBackend
from sacpo.store.results_location import ResultsLocation


def export_for_labels(location: ResultsLocation, count: int, path: Path) -> int:
    """Write a CSV file of pairs of answers to label.

    Raises:
        SacpoError: the file exists already, or there are no answers.
    """
    results = load_folder(location.fetch())
    if path.exists():
        raise SacpoError(f"{path} exists, and may have labels; move it, or give another --output")
    sheet = label_sheet(results.trials, results.responses, count)
    if sheet.empty:
        raise SacpoError(f"{location.uri} has no answers of a trial that is done, so there is nothing to label")
    sheet.to_csv(path, index=False)
    print(f"{path}: {len(sheet)} pairs of answers; write A, B or tie into the column label, and read it back with")
    print(f"  sacpo judge {location.uri} --labels {path}")
    return 0


def add_labels(location: ResultsLocation, path: Path) -> int:
    """Add labels to a results folder, and write the tables `human` and `human_judges` and the report.

    A label replaces an earlier one of the same pair.
    """
    folder = location.fetch()
    results = load_folder(folder)
    labels = read_labels(path, results.trials, results.responses)
    earlier = folder / LABELS_FILE
    if earlier.exists():
        both = pd.concat([pd.read_parquet(earlier), labels])
        labels = both.drop_duplicates(["criterion", "trial_id", "prompt_id", "sample"], keep="last")
    files = LocalBackend(folder)
    files.write(LABELS_FILE, _parquet(labels))
    for name, table in human_tables(results.trials, results.verdicts, labels).items():
        files.write(f"{name}.parquet", _parquet(table))
    results = load_folder(folder)
    write_report(results, folder)
    location.publish()
    print(f"{len(labels)} labelled pairs")
    for row in results.comparisons["human_judges"].to_dict("records"):
        print(
            f"{row['criterion']}: {row['judge']} agrees with {row['raw']:.1%} of {row['labels']} labels; its win rates "
            f"are {row['bias']:+.3f} [{row['bias_low']:+.3f}, {row['bias_high']:+.3f}] from the human ones"
        )
    return 0


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
