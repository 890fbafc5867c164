"""Gives every key of the Secret that has no value yet a random one: passwords that nobody chose, kept nowhere else."""

import base64
import json
import os
import secrets
import ssl
import sys
from pathlib import Path
from urllib.request import Request, urlopen

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))


def main(name: str, keys: list[str]) -> None:
    held = _call(name).get("data") or {}
    new = {key: base64.b64encode(secrets.token_hex(32).encode()).decode() for key in keys if not held.get(key)}
    if new:
        _call(name, {"data": new})
    print(f"{name}: {len(new)} made, {len(keys) - len(new)} kept")


def _call(name: str, change: object = None) -> dict[str, dict[str, str]]:
    """The Secret, after a *change* if one is given."""
    namespace = (ACCOUNT / "namespace").read_text()
    server = os.environ.get("SERVER", "https://kubernetes.default.svc")
    request = Request(
        f"{server}/api/v1/namespaces/{namespace}/secrets/{name}",
        data=None if change is None else json.dumps(change).encode(),
        method="GET" if change is None else "PATCH",
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    trusted = ssl.create_default_context(cafile=ACCOUNT / "ca.crt") if server.startswith("https:") else None
    with urlopen(request, timeout=30, context=trusted) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
