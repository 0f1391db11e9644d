"""Decoding temperatures: students that `bench.py` trained, each at several of them.

`python benchmarks/temperatures.py BENCH --only NAME,… --seeds 17-19 --split valid --temperatures 0.5,0.7,1 --rows FILE [KEY=VALUE …]` measures
the teacher, the SFT student and every student that is there by `tdistill evaluate --temperatures`, and writes one row a system and temperature
with every prompt's scores. What is in ``--rows`` is kept and not measured again.
"""

import bench
from tdistill.experiment.pipeline import provenance

from tdistill.experiment.temperatures import TemperatureRun, parse_temperatures
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import say


def main() -> None:
    parser = bench.parser(__doc__)
    parser.add_argument("--temperatures", required=True, help="separated by commas")
    options = parser.parse_intermixed_args()
    asked, wanted = bench.Bench(options), parse_temperatures(options.temperatures)
    rows = read_jsonl(options.rows) if options.rows.exists() else []
    there = {(r["system"], r["temperature"]) for r in rows}
    found = {s.name: (s, about) for s, about in bench.systems(asked) if any((s.name, t) not in there for t in wanted)}
    if found:
        measured = TemperatureRun(asked.run, options.temperatures, options.split, [system for system, _ in found.values()], asked.root)
        settings = measured.settings
        bench.check_rows(options.rows, rows, settings)
        common = settings | {"provenance": provenance(asked.run.recipe)}
        for m in measured.measure():
            if m.temperature in wanted and (m.system, m.temperature) not in there:
                row = {"system": m.system, "temperature": m.temperature} | found[m.system][1] | common
                rows.append(row | {"scores": bench.rounded(m.scores)})
        write_jsonl(options.rows, sorted(rows, key=lambda r: (r["system"], r["temperature"])))
    say(f"{len(found)} systems measured → {options.rows}")


if __name__ == "__main__":
    main()
