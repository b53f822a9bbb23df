"""The page that a run leaves behind: figures and one self-contained HTML file."""

from __future__ import annotations

from ppcmi_fast.report.html import write_report

__all__ = ["write_report"]
