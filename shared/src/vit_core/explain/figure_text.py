"""Names that users chose, in figures."""


def figure_text(name: str) -> str:
    """The name for a title or a label of matplotlib, which shows it as it is.

    Without this, what stands between two dollars is a formula, mostly a wrong one; and a file's name that is not in
    UTF-8 has letters that no font can show.
    """
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
