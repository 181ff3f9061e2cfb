"""The web page on which people write demonstrations and rank outputs (`textrl collect`).

Order of reading: in `textrl/labels`, `answers.py` (one answer), `tables.py` (the tables),
`store.py` (assignment and storage), `export.py` (to the trainers), `agreement.py`; then here the
web page: `app.py`, `labeler_api.py`, `lead_api.py`, `security.py`, `server.py`, and the background
helpers `sampler.py` and `reward_check.py`. It needs the extra `collect`; `import textrl` never
loads it.
"""
