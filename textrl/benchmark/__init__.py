"""`textrl benchmark`: several agents on one task with one budget."""
