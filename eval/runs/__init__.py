"""What is kept of a run: the forms of its files, and the folders that hold them.

`forms` (kinds of numbers, and what several files share); `evaluation`, `studies`, `comparisons`,
`bench`, `verify` (what each file holds); `schemas` (their JSON Schemas, and reading them back).
"""
