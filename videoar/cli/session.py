"""The global options, accepted before and after the verb, and the command classes that parse them.

The options are declared once, as parameters of the root command in `cli.app`. Each verb inherits
these parameters, so that its parser accepts them and its `-h` lists them. A value after the verb
overrides one before it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from videoar import api
from videoar.core.logging import configure_logging
from videoar.core.settings import settings

if TYPE_CHECKING:  # typer vendors click and gives these types no public name
    from typer._click.core import Command, Context, Parameter
    from typer._click.formatting import HelpFormatter

EXAMPLE = "Example: "
_Decorator = Callable[[Callable[..., None]], Callable[..., None]]
_TOO_LARGE = 2**63
_GLOBAL = ("store", "target", "as_json", "verbose", "version")


@dataclass
class Session:
    """The options of one call of the command line, and the run that it drives."""

    store: str = ""
    target: str = ""
    as_json: bool = False
    verbose: bool = False
    execution: "api.Execution | None" = None

    def open(self) -> "api.Store":
        """Open the store that this call works on."""
        return api.open_store(self.store)

    def begin(self, options: dict[str, Any]) -> None:
        """Start with the options that were given before the verb."""
        vars(self).update(vars(Session()))  # in place: the verbs have imported this object
        self.update(options)

    def update(self, options: dict[str, Any]) -> None:
        """Apply the options that are set; an option that is not set keeps its value."""
        vars(self).update({name: value for name, value in options.items() if value})
        configure_logging(log_form(), verbose=self.verbose)


session = Session()


def log_form() -> str:
    """Return the form of log lines: text for a terminal, JSON lines for a log collector."""
    return settings().log or ("text" if sys.stderr.isatty() else "json")


class Verb(TyperCommand):
    """A command that takes the global options as well."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """Return the command's own parameters and the global ones."""
        return super().get_params(ctx) + _global_params(ctx)

    def invoke(self, ctx: "Context") -> object:
        """Apply the global options, and call the command with the others."""
        _apply_global_options(ctx)
        _require_finite_numbers(self, ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write the global options of `-h` in a section of their own."""
        _write_options(self, ctx, formatter)

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        """Return the parts of the usage line: PIPELINE instead of typer's {PIPELINE}."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]


def verb(app: typer.Typer, panel: str, example: str, name: str | None = None) -> _Decorator:
    """Return a decorator that adds a function to an app as a verb.

    Args:
        app: where it is added.
        panel: section of `videoar -h` that lists it.
        example: arguments after `videoar`; printed by `-h`, and when arguments are missing.
        name: None means that of the function.
    """
    epilog = f"{EXAMPLE}videoar {example}"
    return app.command(name, cls=Verb, rich_help_panel=panel, epilog=epilog)


class VerbGroup(TyperGroup):
    """A group of verbs that takes the global options as well; without a verb it prints its help."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """Return the group's own parameters and the global ones."""
        return super().get_params(ctx) + _global_params(ctx)

    def invoke(self, ctx: "Context") -> object:
        """Apply the global options, and call the verb or print the help."""
        _apply_global_options(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write the global options of `-h` in a section of their own."""
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


class RootGroup(TyperGroup):
    """The command `videoar`: its help lists the verbs by what they work on."""

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:  # noqa: ARG002 - the signature of click
        """Write one section per panel, in the order in which the verbs were added."""
        panels: dict[str, list[tuple[str, str]]] = {}
        # 6: indentation and gap of click's own definition lists
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(width)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=14)


def print_help_without_verb(ctx: typer.Context) -> None:
    """Print the help of a group that was called without a verb."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _global_params(ctx: "Context") -> "list[Parameter]":
    # The root has them already; click would report them as declared twice.
    root = ctx.find_root()
    params = root.command.params if root is not ctx else []
    return [param for param in params if param.name in _GLOBAL]


def _apply_global_options(ctx: "Context") -> None:
    # popped, because click calls the verb's function with all that is left in `params`
    session.update({name: ctx.params.pop(name) for name in _GLOBAL if name in ctx.params})


def _require_finite_numbers(command: "Command", ctx: "Context") -> None:
    """Refuse NaN, infinities and numbers beyond 64 bits, which a minimum lets through."""
    for param in command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(value, int | float) and not abs(value) < _TOO_LARGE:
            what = f"--{param.name}: is no finite number of 64 bits".replace("_", "-")
            raise typer.BadParameter(what, ctx=ctx)


def _write_options(command: "Command", ctx: "Context", formatter: "HelpFormatter") -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        title = "Global options" if param.name in _GLOBAL else "Options"
        title = "Arguments" if param.param_type_name == "argument" else title
        record = param.get_help_record(ctx)
        if record is not None:
            sections.setdefault(title, []).append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
