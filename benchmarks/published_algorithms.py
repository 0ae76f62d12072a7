"""Run the planted demonstrations of the published algorithms into ``benchmarks/results/published-algorithms.json``."""

from pathlib import Path

from rlkd.records import commit, source, write_json_atomic
from rlkd.systems.demonstration import demonstrate

RESULTS = Path(__file__).parent / "results" / "published-algorithms.json"


def main() -> None:
    """Write the records."""
    code = {"commit": commit(), "source": source()}
    records = [{**record, **code} for record in demonstrate(seeds=range(5))]
    write_json_atomic(RESULTS, records)
    for record in records:
        print(record)


if __name__ == "__main__":
    main()
