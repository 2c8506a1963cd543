"""Plain data in, one HTML file out: `page.render`; `schema` says what the data is."""
