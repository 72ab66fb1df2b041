"""From a run's ledger to tables, pictures and one self-contained HTML page. Reads files only, never a live run."""

from peertune.report.page import write_report
from peertune.report.table import Table
from peertune.report.tables import result_tables, run_tables

__all__ = ["Table", "result_tables", "run_tables", "write_report"]
