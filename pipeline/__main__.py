"""`python -m pipeline` says which commands there are; each is a module of its own."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

COMMANDS = {
    "self_instruct": "seed tasks -> records      python -m pipeline.self_instruct --seeds seeds/175.jsonl",
    "self_qa": "documents -> records       python -m pipeline.self_qa docs/",
    "self_kg": "triples -> records         python -m pipeline.self_kg kg/planets.ttl",
    "curate": "runs, files -> a good set  python -m pipeline.curate outputs/A outputs/B --out outputs/C",
    "regenerate": "sources -> a new version   python -m pipeline.regenerate regenerate.toml",
    "schedule": "the same, at its hours     python -m pipeline.schedule regenerate.toml",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list, or the version."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="python -m pipeline.COMMAND [--help]",
        description="instructloop: instruction-tuning data from seeds, documents and knowledge graphs.\n\n"
        + "\n".join(f"  {name:14} {about}" for name, about in COMMANDS.items())
        + "\n\nWith --plan the first three say what they would send, and send nothing. README.md goes on from here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("instructloop")
    parser.add_argument("--version", action="version", version=f"instructloop {version}")
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args(argv)
    if arguments.command:
        name = arguments.command[0]
        parser.error(f"run it as: python -m pipeline.{name}" if name in COMMANDS else f"there is no command {name!r}")
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
