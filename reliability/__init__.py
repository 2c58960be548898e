"""Scripts that put the promises of docs/reliability.md under pressure, and count what holds."""
