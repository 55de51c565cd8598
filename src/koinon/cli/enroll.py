"""Commands of identities: who a node is, and whom a server lets in."""

from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.network import HOME
from koinon.cli.options import Json, encoded, tell
from koinon.core.errors import AdmissionError
from koinon.durable.roster import Roster
from koinon.run.host import Home
from koinon.wire.identity import key_text, parse_key

app = typer.Typer(help="Identities, approvals, tokens, revocations.", no_args_is_help=True)

ServerHome = Annotated[Path, typer.Option(help="The server's folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the node is called in the federation.")]
SERVER = HOME / "server"


@app.command("new")
def new_identity(
    home: Annotated[Path, typer.Option(help="The node's folder.")] = HOME / "node", json: Json = False
) -> None:
    """On a node: make an identity, and print its public key for the operator."""
    target = Home(home)
    if target.identity.exists():
        raise AdmissionError(f"{target.identity} exists; its key is {key_text(target.own_identity().key)}")
    key = key_text(target.own_identity().key)
    tell(key, json, key=key)


@app.command()
def approve(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The node's public key, ed25519:...")],
    name: Name,
    home: ServerHome = SERVER,
    json: Json = False,
) -> None:
    """On the server: let an identity in."""
    Roster(Home(home).roster).approve(parse_key(key), name)
    tell(f"{name} may join", json, name=name, status="approved")


@app.command()
def token(name: Name, home: ServerHome = SERVER, json: Json = False) -> None:
    """On the server: print a token with which one node can enrol itself, once."""
    invitation = Roster(Home(home).roster).invite(name)
    tell(invitation, json, name=name, token=invitation)


@app.command()
def revoke(name: Name, home: ServerHome = SERVER, json: Json = False) -> None:
    """On the server: let an identity in no more; a connected node is cut at once."""
    Roster(Home(home).roster).revoke(name)
    tell(f"{name} is revoked", json, name=name, status="revoked")


@app.command("list")
def list_entries(home: ServerHome = SERVER, json: Json = False) -> None:
    """On the server: the identities it knows, and those that wait for approval."""
    entries = [
        {"name": entry.name, "key": key_text(entry.key), "status": entry.status}
        for entry in Roster(Home(home).roster).entries()
    ]
    if json:
        print(encoded(entries))
    for entry in () if json else entries:
        print(f"{entry['status']:9} {entry['name'] or '-':20} {entry['key']}")
