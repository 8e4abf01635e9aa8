#!/usr/bin/env bash
# Does what the Dockerfile says, without Docker: builds the wheel from the files that it copies, installs it alone into a
# fresh environment, runs its CMD in an empty folder, its HEALTHCHECK against that, and stops it as Docker would.
#
#     tests/system/check_dockerfile.sh
set -euo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
chmod 711 "$work" # started by root, the embedded PostgreSQL belongs to another user

instruction() { # the JSON array behind CMD or HEALTHCHECK, one element a line
    python3 - "$1" "$project/Dockerfile" <<'PYTHON'
import json, re, sys
lines = open(sys.argv[2]).read().splitlines()
line = next(line for line in lines if line.startswith(sys.argv[1]))
print("\n".join(json.loads(line[line.index("["):])))
PYTHON
}

mkdir "$work/src" "$work/wheels" "$work/home"
chmod 711 "$work/home"
grep -E '^COPY [^-]' "$project/Dockerfile" | while read -r _ arguments; do
    read -ra files <<<"$arguments"
    target=${files[-1]}
    unset 'files[-1]'
    (cd "$project" && cp -r "${files[@]}" "$work/src/$target")
done
echo "building the wheel"
cd "$work/src"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/wheels" .
"$work/venv/bin/pip" install --quiet "$work"/wheels/*.whl

mapfile -t command < <(instruction CMD)
mapfile -t health < <(instruction HEALTHCHECK)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
environment=(
    "PATH=$work/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin" PYTHONUNBUFFERED=1
    DJANGO_SETTINGS_MODULE=realtime_project.settings "WALCAST_HOME=$work/home" HOST=127.0.0.1 "PORT=$port"
)
echo "starting: ${command[*]}"
cd "$work/home"
env -i "${environment[@]}" "${command[@]}" >"$work/log" 2>&1 &
server=$!
until env -i "${environment[@]}" "${health[@]}" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    ((SECONDS < 180)) || { echo "not healthy in time" >&2; cat "$work/log" >&2; exit 1; }
    sleep 0.2
done
echo "healthy; looking at the page and what it loads"
python3 - "$port" <<'PYTHON'
import re, sys, urllib.parse, urllib.request
base = f"http://127.0.0.1:{sys.argv[1]}/"
page = urllib.request.urlopen(base).read().decode()
paths = re.findall(r'(?:href|src)="(/?static/[^"]+)"', page)
assert paths, "the page loads nothing"
for path in paths:
    assert urllib.request.urlopen(urllib.parse.urljoin(base, path)).status == 200, path
    print(" ", path)
PYTHON
echo "stopping"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
cat "$work/log"
((code == 0)) || { echo "it ended with $code" >&2; exit 1; }
echo "The Dockerfile's steps work."
