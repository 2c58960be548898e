"""User-supplied names in figures."""


def figure_text(name: str) -> str:
    """Escape a name so that matplotlib shows it literally in titles and labels.

    Otherwise text between two dollar signs is parsed as a formula, and file names that are not UTF-8 cannot be drawn.
    """
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
