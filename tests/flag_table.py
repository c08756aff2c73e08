"""The table of flags as the README has it, from the parser: `python tests/flag_table.py` prints it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from visualizeHeatMap import build_parser  # noqa: E402


def default_of(action: argparse.Action, group: str) -> str:
    """The default of a flag as it is typed: "off" for a switch, "" for none."""
    if group == "required":
        return "required"
    if action.nargs == 0:
        return "off"
    if shown := re.search(r"\(default: (.*?)\)", action.help or ""):
        return shown[1]
    return "" if action.default in (None, ()) else str(action.default)


def flag_rows() -> list[tuple[str, str, str, str]]:
    """(group, flag, default, help) of each flag, in the order of `--help`."""
    rows = []
    for group in build_parser()._action_groups:
        for action in group._group_actions:
            flag, text = action.option_strings[-1], re.sub(r" \(default: .*?\)", "", action.help or "")
            if flag != "--help":
                rows.append((group.title, flag, default_of(action, group.title), text))
    return rows


def main() -> None:
    group = None
    print("| flag | default | meaning |\n| --- | --- | --- |")
    for own, flag, default, text in flag_rows():
        if own != group:
            print(f"| **{own}** | | |")
            group = own
        plain = default in ("", "off", "required", "Reason-RFT's")
        print(f"| `{flag}` | {default if plain else f'`{default}`'} | {text} |")


if __name__ == "__main__":
    main()
