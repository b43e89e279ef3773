"""`sacpo report RESULTS`: writes the tables, the plot and the page of a results folder again, from its store."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from sacpo.command_line import command, parse
from sacpo.store.results_location import ResultsLocation


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 the report is written, 2 the folder has no results or cannot be written."""
    parser = argparse.ArgumentParser(prog="sacpo report", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or a bucket's URI")
    parser.add_argument("--picture", type=Path, help="write the picture of the front here too: a .png, .svg or .pdf")
    parser.add_argument(
        "--serve", action="store_true", help="show the sweep in a browser while it runs; writes nothing"
    )
    parser.add_argument("--port", type=int, default=8765, help="with --serve: port on 127.0.0.1 (default: %(default)s)")
    arguments = parse(parser, argv)
    if arguments.serve:
        return _serve(arguments.results, arguments.port)
    from sacpo.runs.report_run import rebuild_report

    location = ResultsLocation(arguments.results)
    problem = rebuild_report(location, arguments.picture)
    if problem is not None:
        print(f"{problem}; the report is made from the tables as they were last written", file=sys.stderr)
    for path in (*(location.folder / name for name in ("report.html", "pareto.png", "trials.csv")), arguments.picture):
        if path is not None:
            print(path)
    return 0


def _serve(results: str, port: int) -> int:
    """Serve the live view until Ctrl-C."""
    from sacpo.runs.serve_run import LiveView, server

    http = server(LiveView(ResultsLocation(results)), port)
    print(f"http://127.0.0.1:{http.server_port}/  (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt), http:
        http.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
