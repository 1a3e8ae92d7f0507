"""`qload schema`: the JSON Schemas of the configs that the installed methods read."""

from pathlib import Path

import click

from qload.errors import MethodError
from qload.formats.document import make_schema
from qload.registry import Registry
from qload.schemas import CONFIG_SCHEMA, dump, make_schemas

REPORT_SCHEMA = "report"


@click.command(name="schema")
@click.argument("method", required=False)
@click.option(
    "--all",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write every schema into a folder, in a file of its own.",
)
def command(method: str | None, folder: Path | None) -> None:
    """Print the JSON Schema of METHOD's config, or list the schemas.

    "config" is that of a model's config.json, "report" that of what `qload validate --format json` writes.
    """
    registry = Registry.discover()
    schemas = {**make_schemas(registry), REPORT_SCHEMA: make_schema()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas.items():
            (folder / f"{name}.json").write_text(dump(schema), encoding="utf-8")
    elif method is None:
        click.echo("\n".join(schemas))
    elif method in schemas:
        click.echo(dump(schemas[method]), nl=False)
    else:
        raise _refuse(method, registry, tuple(schemas))


def _refuse(name: str, registry: Registry, known: tuple[str, ...]) -> MethodError:
    if name in registry.names and registry.method(name).info.config is None:
        return MethodError("the method has no config", method=name, found=name)
    others = ", ".join(each for each in known if each not in (CONFIG_SCHEMA, REPORT_SCHEMA))
    remedy = f"name one of {others}, {CONFIG_SCHEMA} or {REPORT_SCHEMA}"
    return MethodError("there is no such method", method=name, found=repr(name), remedy=remedy)
