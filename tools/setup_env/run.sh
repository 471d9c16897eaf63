#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Finds a Python that the pinned packages exist for, and hands over to __main__.py of this folder.
# PYTHON=/path/to/python chooses one by hand.
here=$(cd "$(dirname "$0")" && pwd)

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

if [ -n "$PYTHON" ]; then
    fits "$PYTHON" && exec "$PYTHON" "$here" "$@"
    echo "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 || echo 'not found'); allowed: Python 3.11 or 3.12." >&2
    exit 1
fi
for candidate in "$here/../../.venv/bin/python" python3.11 python3.12 python3 python \
    "$HOME"/.pyenv/versions/3.11.*/bin/python "$HOME"/.pyenv/versions/3.12.*/bin/python; do
    fits "$candidate" && exec "$candidate" "$here" "$@"
done

cat >&2 <<MESSAGE
No Python 3.11 or 3.12 found (python3 is $(python3 --version 2>&1 || echo missing)).
The pinned packages (open3d 0.19, numpy 2.3.5 and others) exist for these two alone. Install one, then run again:
    sudo apt install python3.11 python3.11-venv python3.11-dev        (Debian 12, Ubuntu 22.04)
    sudo apt install python3.12 python3.12-venv python3.12-dev        (Ubuntu 24.04)
    uv python install 3.11        pyenv install 3.11        conda create -n python311 python=3.11
or name it:    make PYTHON=/path/to/python3.11 ...
MESSAGE
exit 1
