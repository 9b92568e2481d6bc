"""Write the record of reproductions and the README's line on it: python scripts/reproductions.py"""

from pathlib import Path

from metarun.reports.reproductions import headline, markdown, recipes, stored, with_generated

root = Path(__file__).parents[1]
folder = root / "outputs" / "reproduced"
papers, results = recipes(), stored(folder)
for readme, part in (
    (folder / "README.md", markdown(papers, results)),
    (root / "README.md", headline(papers, results) + "\n"),
):
    readme.write_text(with_generated(readme.read_text(), part))
