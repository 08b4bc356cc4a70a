"""What a conversion shows while it works, and the table of layers at its end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from converters.quantization.losses import Loss


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str], None]]:
    """Give a function that names the step at work; a bar moves beside it while nobody knows how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def say(what: str) -> None:
            for task in progress.task_ids:
                progress.remove_task(task)
            progress.add_task(what, total=None)

        yield say


def show_layers(parts: Sequence[Loss], console: Console, most: int = 8) -> None:
    """Print the parts of the network that cost most in INT8, for `--float` to name."""
    table = Table("part", "layers", "largest own error", "outputs' error that goes when it alone is float")
    table.title = "where INT8 loses most"
    for loss in parts[:most]:
        table.add_row(loss.part, str(len(loss.nodes)), f"{loss.own:.1%}", f"{loss.gain:.1%}")
    console.print(table)
