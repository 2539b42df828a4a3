#!/bin/sh
# Makes a virtual environment with the first Python >= 3.12 that really runs, or with
# the version that is asked for.
# usage: make_venv.sh DIRECTORY [VERSION]
set -u
venv=$1
version=${2:-}

# A name on the PATH may be a shim that refuses to run: ask the interpreter itself.
usable() {
    "$1" -c '
import sys, venv, ensurepip
found, asked = "%d.%d" % sys.version_info[:2], sys.argv[1]
sys.exit(found != asked if asked else sys.version_info < (3, 12))
' "$version" >/dev/null 2>&1
}

pyenv_root=${PYENV_ROOT:-$HOME/.pyenv}
for python in "${PYTHON:-}" python3.13 python3.12 python3 \
    "$pyenv_root"/versions/3.13*/bin/python "$pyenv_root"/versions/3.12*/bin/python \
    "$pyenv_root"/versions/3.1[4-9]*/bin/python; do
    if [ -n "$python" ] && usable "$python"; then
        echo "Making $venv with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
        "$python" -m venv --clear "$venv" && exit 0
        rm -rf "$venv"
        echo "$python could not make a virtual environment; trying the next." >&2
    fi
done

if command -v uv >/dev/null 2>&1; then
    echo "Making $venv with a Python that uv provides"
    uv venv --seed --python "${version:->=3.12}" "$venv" && exit 0
    rm -rf "$venv"
fi

cat >&2 <<END
This needs Python ${version:-3.12 or newer}, with venv, and none was found that runs.
Tried: \$PYTHON, python3.13, python3.12, python3, pyenv's versions, uv.
Install one of:
  - Python ${version:-3.13}:  https://www.python.org/downloads/  (Debian, Ubuntu: python3-venv too)
  - pyenv:        pyenv install ${version:-3.13}
  - uv:           https://docs.astral.sh/uv/  (it brings its own Python)
or name one:      make PYTHON=/path/to/python${version:-3.13} ...
END
exit 1
