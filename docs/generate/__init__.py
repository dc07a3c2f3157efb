"""Pages that are generated when the site is built, so that they cannot be out of date."""
