# Say in one line what this machine lacks before anything is made. Debian and Ubuntu split Python into packages.
python=$1
need() { echo "error: $1; run: sudo apt-get install $2" >&2; exit 1; }
command -v "$python" >/dev/null || need "no $python" "python3 python3-venv python3-dev"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$python" --version) is too old, 3.11 or later is needed; run: make PYTHON=python3.12" >&2; exit 1; }
"$python" -c 'import ensurepip' 2>/dev/null || need "$python cannot make environments" "python3-venv"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    need "the C headers of $python are missing" "python3-dev"
command -v "${CXX:-c++}" >/dev/null && command -v "${CC:-cc}" >/dev/null || need "no C and C++ compiler" "build-essential"
"$python" -c 'import sqlite3; sqlite3.connect(":memory:").execute("create virtual table t using fts5(x)")' 2>/dev/null ||
    { echo "error: the SQLite of $python has no FTS5; use the Python of your distribution: make PYTHON=/usr/bin/python3" >&2; exit 1; }
