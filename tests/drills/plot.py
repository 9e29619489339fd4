"""Draws timeline.png from samples.csv: plot.py FOLDER."""

import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The labels of columns that would read badly; every other one is shown under its own name.
LABELS = {
    "good_per_s": "good tasks/s",
    "quarantine": "rows in quarantine",
    "queue_age_s": "queue age, s",
    "queue_wait_s": "queue wait, s",
}
COLOURS = ["tab:green", "tab:red", "tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:gray"]


def parts(rows):
    """The rows by part of the drill: what the name of a phase begins with. Phases without one are not drawn."""
    found = {}
    for row in rows:
        part, _, name = row["phase"].partition(": ")
        if name:
            found.setdefault(part, []).append((float(row["seconds"]), name, row))
    return found


def draw(axes, bands, points, title):
    begin = points[0][0]
    for axis, (column, label, colour) in zip(axes, bands):
        seen = [(at - begin, float(row[column])) for at, _, row in points if row[column]]
        axis.fill_between([at for at, _ in seen], [value for _, value in seen], step="pre", color=colour, alpha=0.35)
        axis.step([at for at, _ in seen], [value for _, value in seen], where="pre", color=colour, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    before = None
    for at, name, _ in points:
        if name != before:
            for axis in axes:
                axis.axvline(at - begin, color="black", linewidth=0.5, linestyle=":")
            axes[0].annotate(name, (at - begin, 1.02), xycoords=("data", "axes fraction"), rotation=30, fontsize=7)
            before = name
    axes[0].set_title(title, pad=60, fontsize=10)
    axes[-1].set_xlabel("seconds")


def main():
    folder = pathlib.Path(sys.argv[1])
    with open(folder / "samples.csv", newline="") as file:
        reader = csv.DictReader(file)
        columns = [column for column in reader.fieldnames if column not in ("seconds", "phase")]
        found = parts(reader)
    bands = [(column, LABELS.get(column, column), COLOURS[at % len(COLOURS)]) for at, column in enumerate(columns)]
    shown = {name: points for name, points in found.items() if len(points) > 1}
    if not shown:
        sys.exit("there are no samples")
    figure, axes = plt.subplots(
        len(bands), len(shown), figsize=(5 * len(shown), 3 * len(bands)), squeeze=False, layout="constrained"
    )
    for column, (name, points) in enumerate(shown.items()):
        draw(axes[:, column], bands, points, name)
    figure.suptitle(folder.name)
    figure.savefig(folder / "timeline.png", dpi=110)


main()
