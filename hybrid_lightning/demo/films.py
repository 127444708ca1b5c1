"""Films as a manifest: were they fresh or rotten to critics? ``python -m hybrid_lightning.demo.films``."""

import csv
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from hybrid_lightning.importing import package_folder

FEWEST_REVIEWS = 40
"""With fewer the share of favorable ones is uncertain."""
FRESH = 60  # percent of the reviews are favorable, as Rotten Tomatoes says
_QUERY = """
    SELECT ID, Title, Director, Writer, "Cast", Year, Country, Genre, Meter
    FROM omdb JOIN tomatoes USING (ID)
    WHERE Reviews >= ? AND Meter IS NOT NULL ORDER BY ID
"""


def write_films(folder: str | Path) -> Path:
    """Writes ``films.csv``: 6,144 films of 1940 to 2014 with at least 40 reviews, 60 % of them fresh.

    Columns: ``film``, its number; ``text``, its title and people; ``year``; ``country`` and ``genre``, the first ones
    that are named; ``verdict``, fresh or rotten. They are Wikidata's, in the public domain (CC0), by the package
    bokeh-sampledata (extra ``sets``).

    Args:
        folder: Where the file goes; made if it is missing.

    Returns:
        The path of the file.

    Raises:
        ConfigError: If the package is missing.
    """
    database = package_folder("bokeh_sampledata", "sets", "films") / "_data" / "movies.db"
    path = Path(folder) / "films.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        films = connection.execute(_QUERY, [FEWEST_REVIEWS]).fetchall()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["film", "text", "year", "country", "genre", "verdict"])
        for film, title, director, author, cast, year, country, genre, meter in films:
            text = " . ".join(filter(None, [title, director, author, cast]))
            verdict = "fresh" if meter >= FRESH else "rotten"
            writer.writerow([film, text, year, country.split(", ")[0], genre.split(", ")[0], verdict])
    return path


if __name__ == "__main__":
    print(write_films(*(sys.argv[1:2] or ["films"])))
