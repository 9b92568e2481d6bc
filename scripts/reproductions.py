"""Write the table of reproductions into the README: python scripts/reproductions.py"""

from pathlib import Path

from metarun.reports.reproductions import markdown, recipes, stored, with_table

root = Path(__file__).parents[1]
readme = root / "README.md"
readme.write_text(with_table(readme.read_text(), markdown(recipes(), stored(root / "outputs" / "reproduced"))))
