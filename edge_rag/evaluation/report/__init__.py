"""Runs side by side: one HTML file with tables, plots and every answer's fate, and a Markdown table for a README."""

from edge_rag.evaluation.report.write import markdown_table, write_report

__all__ = ["markdown_table", "write_report"]
