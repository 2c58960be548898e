"""The ledger: what papers claim (`claims`), what was found (`verdicts`), when rows differ (`statistics`)."""
