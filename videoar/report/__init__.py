"""The report page of a run: `collect` reads the store, `page` renders one HTML file."""
