"""A report of one verb -> a page, one file a verb."""
