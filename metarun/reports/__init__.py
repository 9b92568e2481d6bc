"""Reports: comparisons of finished runs as pages, tables and plots, and records of reproduced papers."""
