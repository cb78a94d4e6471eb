"""An SSH server in this process, and answers of devices that were made up for tests."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import asyncssh

MADE_UP = Path(__file__).parent / "made_up"


def made_up(name: str) -> str:
    return (MADE_UP / f"made_up_{name}.txt").read_text()


def made_up_state(
    power_mode: str = "made_up_15W", hottest: float = 40.0, clocks: tuple = (), gpu_limits: str = ""
) -> dict:
    return {
        "power_mode": f"NV Power Mode: {power_mode}\n7" if power_mode else "",
        "clocks": clocks,
        "gpu_limits": gpu_limits,
        "temperatures_celsius": {"zone0 cpu": hottest, "zone1 gpu": hottest - 5},
        "memory_kib": {"MemTotal": 8_000_000, "MemAvailable": 4_000_000},
        "load_average": [0.0, 0.0, 0.0],
    }


def made_up_probe(**changes: object) -> dict:
    return {
        "status": "done",
        "architecture": "aarch64",
        "system": "Linux 0.0.0-made-up",
        "python": "3.10.0",
        "board": "Made-up Jetson Orin Nano Developer Kit",
        "cpu_info": "",
        "usable_cores": 6,
        "jetson_release": made_up("nv_tegra_release"),
        "jetpack": "0.0-made-up",
        "driver": made_up("driver"),
        "gpus": "",
        "android": "",
        "chip": "",
        "cuda_runtime": True,
        "trtexec": "",
        "modules": {name: {"version": "1.0", "reason": ""} for name in ("numpy", "onnxruntime", "tensorrt")},
        "state": made_up_state(),
        **changes,
    }


def made_up_reply(**changes: object) -> dict:
    return {
        "status": "done",
        "outputs": ["logits"],
        "times_ms": [1.0, 2.0, 3.0, 4.0, 5.0],
        "before": made_up_state(),
        "after": made_up_state(hottest=50.0),
        "tegrastats": made_up("tegrastats"),
        "cooling_seconds": 0.0,
        "runtime": "tensorrt made-up",
        "provider": "GPU",
        "optimization": "engine",
        **changes,
    }


class LoopbackSshServer:
    """A server that runs each command in this machine's shell, as sshd does, and counts them.

    `on_command` sees each command line with the server's process before it runs; it may end the connection.
    """

    def __init__(self, authorized_key: asyncssh.SSHKey, *, sftp: bool = True) -> None:
        self._sftp = sftp
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.commands: list[str] = []
        self._children: list[asyncio.subprocess.Process] = []
        self.on_command: Callable[[str, asyncssh.SSHServerProcess], bool] = lambda line, process: False
        self._authorized = asyncssh.import_authorized_keys(authorized_key.export_public_key().decode())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._acceptor = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(20)
        self.port = self._acceptor.get_port()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.host_key],
            authorized_client_keys=self._authorized,
            process_factory=self._serve,
            sftp_factory=self._sftp,
        )

    async def _serve(self, process: asyncssh.SSHServerProcess) -> None:
        line = str(process.command)
        self.commands.append(line)
        if self.on_command(line, process):
            return
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", line, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._children.append(child)
        out, err = await child.communicate()
        process.stdout.write(out.decode(errors="replace"))
        process.stderr.write(err.decode(errors="replace"))
        if child.returncode and child.returncode < 0:
            process.exit_with_signal("KILL")
        else:
            process.exit(child.returncode or 0)

    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode().strip()}\n"

    def close(self) -> None:
        """End everything that still runs, so that nothing is collected after the loop is closed."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._acceptor.close()
        for child in self._children:
            # With all that it started: who keeps its pipes open is waited for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        await asyncio.gather(*(child.wait() for child in self._children))
        for _ in range(100):
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            if not rest:
                break
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            # What the tasks closed tells the loop so in its next turn.
            await asyncio.sleep(0.01)
