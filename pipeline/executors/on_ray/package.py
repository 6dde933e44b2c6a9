"""What `submit` would upload: a working directory, less what .gitignore and .rayignore name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from schemas.errors import InputError
from schemas.sentences import MOST_ERRORS

MOST_FILES = 100_000
MOST_BYTES = 4 << 30
"""Before they are compressed; Ray takes 512 MiB after that."""

SECRET = re.compile(
    r"\.(ssh|aws|azure|kube|gnupg|netrc|pgpass|pypirc|npmrc|git-credentials|password-store|boto|s3cfg)"
    r"|\.env(\.(?!example$|sample$|template$).*)?|(?!example|sample|template).*\.env|\.envrc|\.Renviron"
    r"|\.?[^.]*_?netrc|auth_token|gcloud|\.docker(cfg)?|\.vault-token|\.my\.cnf|\.databrickscfg|\.modal\.toml"
    r"|id_(rsa|dsa|ecdsa|ed25519)(_sk)?|.*\.(pem|key|p12|pfx|ppk|kdbx|keystore|jks)"
    r"|(application_default_)?credentials(\.(json|csv|db))?|service[-_]account.*\.json|secrets?\.(ya?ml|json|toml|env)"
    r"|\.(bash|zsh|python)_history|kubeconfig|kaggle\.json|rclone\.conf|credentials\.tfrc\.json",
    re.IGNORECASE,
)
"""Names of files and folders that hold keys and passwords."""
TOKENS_OF = re.compile(r"(^|/)\.?(cache/)?huggingface/(token|stored_tokens)$")


OURS = {"jobs": "command/registry.py", "pipeline": "worker.py", "schemas": "records.py"}
"""Our packages, each with a module that no other package of that name has."""


def hiding_packages(folder: Path) -> list[str]:
    """Packages of the folder that would hide latentlake's own on the cluster: it comes first there."""
    return [
        name
        for name, module in OURS.items()
        if (folder / name / "__init__.py").is_file() and not (folder / name / module).is_file()
    ]


def has_own_jobs(folder: Path) -> bool:
    """Whether the folder holds latentlake's packages, of this or another version."""
    return (folder / "jobs" / OURS["jobs"]).is_file()


def check_package(folder: Path, left_out: Sequence[str] = ()) -> tuple[int, int]:
    """How many files would go up, and their bytes, without the packages `left_out`.

    Raises InputError, naming them, where some hold keys or passwords by their names, or the names of what
    they are links to; and where there are more files or bytes than anybody wants to upload.
    """
    files = _Files(folder)
    ignores = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [{folder / name for name in left_out}.__contains__]
    packaging._dir_travel(folder, excludes, files.see, include_gitignore=ignores)  # noqa: SLF001 - as Ray does
    if files.secret:
        names = ", ".join(sorted(files.secret)[:MOST_ERRORS])
        more = f" and {len(files.secret) - MOST_ERRORS:,} more" if len(files.secret) > MOST_ERRORS else ""
        raise InputError(
            f"{folder} would be uploaded with {names}{more}, which hold keys or passwords: move the run file "
            "into a folder of its own and give that as --working-dir, or list them in its .rayignore"
        )
    return files.number, files.size


class _Files:
    """Counts files as they are come to."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.number, self.size = folder, 0, 0
        self.secret: list[str] = []

    def see(self, path: Path) -> None:
        """One file or folder."""
        inside = path.relative_to(self._folder)
        parts = (*inside.parts, *(path.resolve().parts if path.is_symlink() else ()))
        is_secret = any(SECRET.fullmatch(part) for part in parts) or TOKENS_OF.search(str(inside))
        # A secret folder, which is come to first, stands for all that is in it.
        if is_secret and not any(str(inside).startswith(f"{known}/") for known in self.secret):
            self.secret.append(str(inside))
        if path.is_file():
            self.number, self.size = self.number + 1, self.size + path.stat().st_size
        if self.number > MOST_FILES or self.size > MOST_BYTES:
            raise InputError(
                f"{self._folder} holds more than {MOST_FILES:,} files or {MOST_BYTES / 1e9:,.1f} GB, which "
                "would all be uploaded: list what the run does not need in its .rayignore, or give another "
                "--working-dir"
            )
