"""Write the table of reproductions into the README: python scripts/reproductions.py"""

from pathlib import Path

from metarun.config.catalogue import catalogue
from metarun.reports.paper import Paper
from metarun.reports.reproductions import markdown, stored, with_table

root = Path(__file__).parents[1]
papers = {e.name: Paper.of(e.content["paper"]) for e in catalogue("experiment") if e.content.get("paper")}
readme = root / "README.md"
readme.write_text(with_table(readme.read_text(), markdown(papers, stored(root / "outputs" / "reproduced"))))
