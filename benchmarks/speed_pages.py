"""Writes the measured times into the docs, from benchmarks/results/ops_cpu.json.

    python -m benchmarks.ops --threads 1,2 && python -m benchmarks.speed_pages

docs/ops/speed.md gets every row; the page of an op, in place of what stands under its heading
"Speed", its first rows.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ops_cpu.json"
PAGES = ROOT / "docs" / "ops"
MOST_ROWS = 14


def duration(milliseconds: float) -> str:
    """Three digits and a unit."""
    value, unit = (milliseconds * 1e3, "us") if milliseconds < 1 else (milliseconds, "ms")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"


def table(rows: list[dict[str, Any]], most: int | None = None) -> str:
    """A line a case: ours and the ratio at each number of threads, the floor at the last."""
    cases: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["threads"]] = row
    threads = sorted({row["threads"] for row in rows})
    head = ["", *(x for n in threads for x in (f"{n} thread{'s' * (n > 1)}", "times the peer"))]
    head += ["floor", "times the floor"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, by_threads in list(cases.items())[:most]:
        cells = [name]
        for n in threads:
            row = by_threads.get(n)
            cells += [duration(row["ours_ms"]), f"{row['ratio']:.1f}x"] if row else ["", ""]
        last = by_threads[max(by_threads)]
        cells += [duration(last["floor_ms"]), f"{last['ours_over_floor']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the page's comments ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Write."""
    report = json.loads(RESULTS.read_text())
    rows = report["rows"]
    machine = report["machine"]
    where = (
        f"two cores of an AMD EPYC with AVX-512, torch {machine.get('torch', '')}; ratios are to "
        "the peer in the same run, timed in turns; the floor is the time to move the bytes once "
        "(or to do the arithmetic) at the speed measured in that run"
    )
    by_op: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_op.setdefault(row["op"], []).append(row)
    whole = [
        "# Speed of the ops on the CPU\n",
        f"`python -m benchmarks.ops`: {where}. A call costs Python and torch's dispatcher 5 to "
        "20 us, which is what separates small calls from their floor.\n",
    ]
    for op, of_op in sorted(by_op.items()):
        peers = ", ".join(sorted({row["peer"] for row in of_op}))
        whole.append(f"## {op}\n\nPeer: {peers}.\n\n{table(of_op)}")
        page = PAGES / f"{op}.md"
        if page.is_file():
            more = " All rows: [speed.md](speed.md)."
            command = f"python -m benchmarks.ops --ops {op}"
            section = (
                f"## Speed\n\n`{command}`, against {peers}: {where}.{more}\n\n"
                f"{table(of_op, MOST_ROWS)}"
            )
            text = page.read_text()
            replaced = re.sub(
                r"^## Speed\n.*?(?=^## |\Z)", lambda _, s=section: s + "\n", text, flags=re.M | re.S
            )
            page.write_text(replaced.rstrip() + "\n")
    (PAGES / "speed.md").write_text("\n".join(whole).rstrip() + "\n")


if __name__ == "__main__":
    main()
