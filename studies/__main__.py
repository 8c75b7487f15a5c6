"""What post-training did to a language model, where, and how to change it.

Help needs no torch, whose import takes seconds: what is slow is imported once a command is known.
"""

import sys
from collections.abc import Sequence

_RESUMED = ("study", "demo", "diff")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what cannot be done is one sentence on stderr and exit status 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _run(given)
    except KeyboardInterrupt:
        again = (
            "continues where it stopped" if given[:1] and given[0] in _RESUMED else "begins anew"
        )
        print(f"interp: interrupted; the same command {again}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"interp: {error}", file=sys.stderr)
        sys.exit(2)


def _run(given: list[str]) -> None:
    if given == ["--version"]:
        print(_version())
        return
    import tyro

    from studies._catalogue import QUESTIONS

    if given[:1] == ["study"] and given[1:2] and given[1] in QUESTIONS:
        from studies import _study

        _study.run(given[1], given[2:])
        return
    from studies import _commands as commands

    description = f"{(__doc__ or '').splitlines()[0]} `interp --version` says which this is."
    command = tyro.cli(
        commands.Command,
        prog="interp",
        description=description,
        args=given,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    if isinstance(command, commands.Trace):
        from studies import _trace

        _trace.run(command)
    elif isinstance(command, commands.Diff):
        from studies import _diff

        _diff.run(command)
    elif isinstance(command, commands.Bake):
        from studies import _bake

        _bake.run(command)
    elif isinstance(command, commands.Demo):
        from studies import _study

        _study.demo(command)
    else:
        from studies import _study

        _study.run(type(command.chosen).__name__)


def _version() -> str:
    from importlib import metadata

    try:
        return f"interp-toolkit {metadata.version('interp-toolkit')}"
    except metadata.PackageNotFoundError:
        return "interp-toolkit, not installed: run from a source tree"


def _is_expected(error: Exception) -> bool:
    """Whether the sentence says it all: ours, or a file that cannot be read or written."""
    ours = sys.modules.get("interp._errors")  # not imported here: that would import torch
    return isinstance(error, OSError) or (ours is not None and isinstance(error, ours.InterpError))


if __name__ == "__main__":
    main()
