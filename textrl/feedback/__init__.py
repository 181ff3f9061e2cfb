"""Collecting demonstrations and rankings from people: a web page and the database behind it.

Order of reading: `answers.py` (what one answer is), `tables.py` (what is stored), `store.py` (who
gets which task, what counts), `export.py` (to the trainers), `agreement.py`; then the web page:
`app.py`, `labeler_api.py`, `lead_api.py`, `security.py`, `server.py`, and the background helpers
`sampler.py` and `reward_check.py`. Needs the extra `collect`; `import textrl` never loads it.
"""
