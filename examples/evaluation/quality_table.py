"""Writes what measure_quality.py measured as a table for tstitch_sample --budget: REPORT.json to a text.

Rows are the ways to draw whose first 10,000 pictures were judged, stitched, with the Frechet distance as what is to be
small. Ways with a calibrated table are left out, for its file would have to come along.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "torch")
from common import replacing  # noqa: E402

DISTANCE = "frechet_distance_in_classifier_features"
BUNDLED = ["cifar10-dit-small", "cifar10-dit-large"]
PROFILES = {"recommended"}  # the others are samplers


def row_of(cell: dict, pictures: int) -> str | None:
    """A line of the table, or None for what it does not hold."""
    judged = cell if cell["pictures"] == pictures else cell.get("first", {})
    forecast = cell.get("forecast", "none")
    if judged.get("pictures") != pictures or cell["routing"] != "stitch" or forecast == "calibrated":
        return None
    sampler = cell["sampler"]
    shares = f"{cell['ratio']:g},{round(1 - cell['ratio'], 6):g}"
    values = [f"{judged[DISTANCE]:.4f}", f"profile:{sampler}" if sampler in PROFILES else sampler, cell["steps"], shares,
              forecast, cell.get("forecast_guidance", "none")]  # fmt: skip
    return "\t".join(map(str, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--pictures", type=int, default=10_000, metavar="N", help="judged in each (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", default=BUNDLED, metavar="NAME", help="their names, small first")
    args = parser.parse_args()
    rows, scales = [], set()
    for report in args.reports:
        try:
            for cell in json.loads(report.read_text())["cells"]:
                if row := row_of(cell, args.pictures):
                    rows.append(row)
                    scales.add(cell["guidance"])
        except (OSError, ValueError, KeyError, TypeError):
            sys.exit(f"{report}: must be a report of measure_quality.py, got something else")
    if len(scales) != 1:
        sys.exit(f"{args.reports[0]}: must have pictures of one guidance scale, got {sorted(scales) or 'none'}")
    head = ["tstitch quality table 1", "\t".join(["networks", *args.networks]), f"guidance\t{scales.pop():g}",
            "\t".join(["distance", "sampler", "steps", "shares", "forecast", "forecast guidance"])]  # fmt: skip
    with replacing(args.output) as temporary:
        temporary.write_text("\n".join([*head, *sorted(set(rows), key=lambda row: float(row.split("\t")[0]))]) + "\n")


if __name__ == "__main__":
    main()
