"""From a run's ledger to tables, pictures and one self-contained HTML page. Reads files only, never a live run."""

from peertune.report.page import write_report
from peertune.report.tables import (
    Table,
    agents_table,
    cost_table,
    failures_table,
    metrics_table,
    pairs_table,
    received_table,
    result_tables,
    results_table,
    run_tables,
    traffic_table,
)

__all__ = [
    "Table",
    "agents_table",
    "cost_table",
    "failures_table",
    "metrics_table",
    "pairs_table",
    "received_table",
    "result_tables",
    "results_table",
    "run_tables",
    "traffic_table",
    "write_report",
]
