"""`reproduce`: every installed paper trained, evaluated, explained, and its claims beside what was measured."""
