"""The demo: InstructGPT's three steps and DPO on movie reviews, from nothing, with a report."""
