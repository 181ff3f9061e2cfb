"""`textrl report`: one HTML file about one run, or about several side by side.

`page.py` has the frame and the parts of pages, `charts.py` the panels, `groups.py` runs of several
seeds as one curve, `runs.py` the sections about runs of agents and trainers, `plane.py` score
against KL, `samples.py` what was said, `benchmark.py` the sections about a benchmark.
"""

from textrl.report.report import Report as Report
