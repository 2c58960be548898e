"""The ledger: the papers' claims (`claims`), their verdicts (`verdicts`) and significance tests (`statistics`)."""
