"""Task families of tables: each task predicts one column of a table from the others."""
