"""`textrl report`: one HTML file about one run, or about several side by side.

`page.py` has the frame and the parts of pages, `charts.py` the panels, `runs.py` the sections about
runs of agents and trainers, `samples.py` what they said, `benchmark.py` those about a benchmark.
"""

from textrl.report.report import Report as Report
