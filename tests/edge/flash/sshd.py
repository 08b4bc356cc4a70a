"""Debian's OpenSSH server on a loopback port, with keys of its own, for one test."""

import getpass
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.broker import free_port

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
SSH = shutil.which("ssh")


class Sshd:
    """A server that lets one key in; `ssh` is the client's command, which knows the server's host key."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.host = f"{getpass.getuser()}@127.0.0.1"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            self._new_key(name)
        (folder / "authorized").write_bytes((folder / "user_key.pub").read_bytes())
        self.know_host()
        lines = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host_key", "PidFile": "none",
            "AuthorizedKeysFile": folder / "authorized", "StrictModes": "no", "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no", "UsePAM": "no", "PermitRootLogin": "yes",
        }  # fmt: skip
        (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))

    @property
    def ssh(self) -> str:
        """Return the client's command."""
        known, key = self.folder / "known_hosts", self.folder / "user_key"
        return f"ssh -F none -p {self.port} -i {key} -o IdentitiesOnly=yes -o UserKnownHostsFile={known}"

    def know_host(self) -> None:
        """Tell the client the server's key, as an integrator does by comparing fingerprints."""
        key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")

    def change_host_key(self) -> None:
        """Set the server up anew; the client is not told."""
        (self.folder / "host_key").unlink()
        (self.folder / "host_key.pub").unlink()
        self._new_key("host_key")
        self.stop()
        self.start()

    def start(self) -> Self:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # OpenSSH's privilege separation wants it
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "config")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(100):
            done = subprocess.run([*self.ssh.split(), "-o", "BatchMode=yes", self.host, "true"], capture_output=True)
            if done.returncode == 0 or b"HAS CHANGED" in done.stderr:
                return self
            time.sleep(0.1)
        raise RuntimeError(f"{done.stderr.decode()}\n{(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def _new_key(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)
