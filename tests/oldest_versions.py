"""Run the tests with the oldest versions that setup.py allows of everything that it installs.

    python3.10 tests/oldest_versions.py

Use the oldest Python that setup.py allows. The script makes an environment in a temporary folder
(5.3 GB on Linux, with the CUDA libraries). It installs SegStudio there, with each NAME>=VERSION
of setup.py at exactly VERSION, and runs the quick tests. Arguments are passed to pytest:

    python3.10 tests/oldest_versions.py tests/test_training.py -k resume
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def oldest_versions():
    """["torch==2.4", ...]: the lower bounds of setup.py as exact versions."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', setup)
    return [f"{name}=={version}" for name, version in bounds]


def main():
    wanted = re.search(r'python_requires=">=(\d+)\.(\d+)"', (ROOT / "setup.py").read_text())
    if sys.version_info[:2] != tuple(map(int, wanted.groups())):
        print(f"This is Python {sys.version.split()[0]}; the oldest is {'.'.join(wanted.groups())}")
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        pins = Path(folder, "oldest.txt")
        pins.write_text("\n".join(oldest_versions()), encoding="utf-8")
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-c", pins, f"{ROOT}[test]"], check=True
        )
        # The tests run from the checkout, not from the installed copy.
        paths = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [python, "-m", "pytest", *sys.argv[1:]]
        return subprocess.run(command, cwd=ROOT, env=paths, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
