"""What a terminal shows of what was printed on it, all lines that ever left at its top included."""

import re

_PIECE = re.compile(r"\x1b\[(?P<numbers>[?0-9;]*)(?P<final>[A-Za-z])|(?P<text>[^\x1b\n\r]+)|(?P<end>[\n\r])")


def screen_of(printed: str, *, width: int) -> str:
    """Return the lines that are left; knows the few escapes that rich prints while it draws something anew."""
    lines, x, y = [""], 0, 0
    position = 0
    while position < len(printed):
        piece = _PIECE.match(printed, position)
        assert piece is not None, f"an escape that is not known here: {printed[position : position + 20]!r}"
        position = piece.end()
        if text := piece["text"]:
            assert x + len(text) <= width, f"{text!r} does not fit into the line"
            lines[y] = lines[y][:x].ljust(x) + text + lines[y][x + len(text) :]
            x += len(text)
        elif piece["end"] == "\n":
            x, y = 0, y + 1
            lines += [""] * (y == len(lines))
        elif piece["end"] == "\r":
            x = 0
        elif piece["final"] == "A":
            y = max(0, y - int(piece["numbers"] or 1))
        elif piece["final"] == "K":
            assert piece["numbers"] == "2", "only whole lines are erased"
            lines[y] = ""
        else:
            assert piece["final"] in "mhl", f"an escape that is not known here: {piece[0]!r}"
    return "\n".join(line.rstrip() for line in lines) + "\n"
