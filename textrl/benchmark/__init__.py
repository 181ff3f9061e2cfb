"""`textrl benchmark`: compares several agents on one task with one budget."""
