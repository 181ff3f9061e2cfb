"""The demo: InstructGPT's three steps and DPO on movie reviews, from scratch, with a report."""
