"""Every wrong variant can still be made; `make mutants` tries whether a test fails on each."""

from mutants import MUTANTS, wrong_rows


def test_every_mutant_can_be_made() -> None:
    assert wrong_rows(MUTANTS) == []
    assert len(MUTANTS) == len({(m.file, m.old, m.new, m.test) for m in MUTANTS}) >= 60
