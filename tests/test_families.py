"""The table of docs/models.md: every cell is looked at anew, and none is wrong."""

import re

import pytest
from families import CHECKS, FAMILIES, PAGE, cache_of, look

FAST = ("steps", "DPO", "packed")


def cells() -> dict[tuple[str, str], str]:
    """Return what the page says."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        family, *rest = [cell.strip() for cell in line.strip("|").split("|")]
        if family in FAMILIES:
            found |= {(family, c): cell for c, cell in zip(CHECKS, rest[1:], strict=True)}
    return found


def test_the_page_holds_every_cell_and_none_is_wrong() -> None:
    assert list(cells()) == [(family, check) for family in FAMILIES for check in CHECKS]
    assert set(cells().values()) == {"right", "refused"}
    assert sum(family != "BERT" for family in FAMILIES) >= 20
    refused = {family for (family, _), cell in cells().items() if cell == "refused"}
    page = PAGE.read_text(encoding="utf-8")
    assert refused == set(re.findall(r"^- (.*?): ", page.split("## Refusals")[1], re.M)) == {"BERT"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_serves_as_far_as_the_page_says(family: str) -> None:
    assert f"| {family} | {cache_of(family)} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("check", FAST)
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_cells(family: str, check: str) -> None:
    assert look(family, check).split(":")[0] == cells()[family, check]


@pytest.mark.slow
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in FAST])
@pytest.mark.parametrize("family", FAMILIES)
def test_slow_cells(family: str, check: str) -> None:
    if check == "LoRA":
        pytest.importorskip("peft", reason="the optional adapters")
    assert look(family, check).split(":")[0] == cells()[family, check]
