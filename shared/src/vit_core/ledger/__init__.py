"""The ledger: what the papers claim (`claims`), what was found (`verdicts`), and what a difference is (`statistics`)."""
