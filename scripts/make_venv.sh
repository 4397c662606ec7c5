#!/usr/bin/env bash
# Make a virtual environment with the first Python on the path that is at least 3.11: make_venv.sh FOLDER
# PYTHON chooses another interpreter. An environment that is there is kept.
set -eu
folder=$1
[ -x "$folder/bin/pip" ] && exit 0

for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
  if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    exec "$python" -m venv "$folder"
  fi
done
echo "Ballast needs Python 3.11 or newer with its venv module, but none was found on the path;" \
  "install it (Debian: apt-get install python3-venv) or name one: make PYTHON=/path/to/python3.11 ..." >&2
exit 1
