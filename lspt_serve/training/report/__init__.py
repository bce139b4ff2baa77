"""What a run leaves for people who would rather look: a page, its pictures, their numbers."""

from lspt_serve.training.report.write import Record, write_report

__all__ = ["Record", "write_report"]
