"""`report.html`: the comparison of several models as one page that needs no network."""
