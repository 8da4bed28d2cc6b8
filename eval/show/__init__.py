"""What people see of results: tables on a terminal, figures, progress, and the page of a run.

The kits: `tables` (every table and verdict on a terminal), `figures` (style, colours, axes and
files of every figure), `progress` (how far a run is). With them, for a run: `terminal` (its
tables), `page` (report.html), `page_figures` and `headline` (what is on that page).
"""
