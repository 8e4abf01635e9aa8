#!/usr/bin/env bash
# Does what the Dockerfile says, without Docker: its COPY and RUN instructions one after the other in a clean folder, its
# CMD as its USER in an empty home with its ENV and nothing else, its HEALTHCHECK against that; and stops it as Docker
# would. Folders of the image (/src, /wheels, /opt/walcast, /var/lib/walcast) are folders of the clean one; only useradd
# is left out.
#
#     tests/system/check_dockerfile.sh
set -euo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
chmod 755 "$work"

# Debian's own Python if there is one: that of somebody's home could not be read by the image's user.
python=/usr/bin/python3
"$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=$(command -v python3)

instructions() { # one a line, continuations joined, no comments; those of the stage named by $1
    "$python" - "$1" "$project/Dockerfile" <<'PYTHON'
import re, sys
text = re.sub(r"(?m)^#.*\n", "", open(sys.argv[2]).read())
lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
stages = []
for line in lines:
    if line.startswith("FROM "):
        stages.append([])
    stages[-1].append(line)
print("\n".join(stages[int(sys.argv[1])]))
PYTHON
}

here() { # the image's paths, in the clean folder
    sed -E "s#(^|[ =:])/(src|wheels|opt/walcast|var/lib/walcast)#\1$work/\2#g" <<<"$1"
}

json() { # the elements of the JSON array that an instruction ends with
    "$python" -c 'import json, sys; text = sys.argv[1]; print("\n".join(json.loads(text[text.index("["):])))' "$1"
}

echo "the image's base: $("$python" --version), alone"
"$python" -m venv "$work/base"
mkdir -p "$work/src" "$work/opt" "$work/var/lib/walcast"
while read -r line; do
    echo "build: $line"
    case $line in
    FROM* | WORKDIR*) ;;
    COPY*)
        read -ra files <<<"${line#COPY }"
        target=${files[-1]}
        unset 'files[-1]'
        for file in "${files[@]}"; do
            # What .dockerignore does not let through is not there for COPY.
            grep -qxF "!$file" "$project/.dockerignore" || { echo ".dockerignore keeps $file out" >&2; exit 1; }
        done
        (cd "$project" && cp -r "${files[@]}" "$work/src/$target")
        ;;
    RUN*)
        (cd "$work/src" && env -i HOME="$work" PATH="$work/base/bin:/usr/bin:/bin" \
            ${SSL_CERT_FILE:+SSL_CERT_FILE="$SSL_CERT_FILE"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
            PIP_CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/walcast-tests/pip" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 \
            bash -ec "$(here "${line#RUN }" | sed 's/ --no-cache-dir//')" </dev/null) # quicker here, and the same files
        ;;
    *) echo "this script does not know what that means" >&2; exit 1 ;;
    esac
done < <(instructions 0)

environment=()
while read -r line; do
    echo "image: $line"
    case $line in
    "RUN useradd "*) [[ $line == *"--uid 10001 "* ]] ;;
    FROM* | COPY* | WORKDIR* | VOLUME* | EXPOSE*) ;;
    ENV*) read -ra more <<<"$(here "${line#ENV }")"; environment+=("${more[@]}") ;;
    USER*) [[ ${line#USER } == 10001 ]] ;;
    HEALTHCHECK*) mapfile -t health < <(json "$line") ;;
    CMD*) mapfile -t command < <(json "$line") ;;
    *) echo "this script does not know what that means" >&2; exit 1 ;;
    esac
done < <(instructions 1)
environment=("${environment[@]/\$PATH//usr/bin:/bin}")

as_user=()
if ((EUID == 0)); then
    # The image's user is not in this machine's list of users, which initdb looks into; nobody is, and may as little.
    as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    chown -R nobody:nogroup "$work/var/lib/walcast"
    if ! "${as_user[@]}" "$work/opt/walcast/bin/python" -c '' 2>/dev/null; then
        echo "nobody cannot run this machine's Python ($(readlink -f "$python")): going on as $(id -un)"
        chmod 711 "$work/var/lib/walcast"
        as_user=()
    fi
fi

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
environment+=(HOST=127.0.0.1 "PORT=$port")
echo "starting: ${command[*]}"
cd "$work/var/lib/walcast"
"${as_user[@]}" env -i "${environment[@]}" "${command[@]}" >"$work/log" 2>&1 &
server=$!
started=$SECONDS
until "${as_user[@]}" env -i "${environment[@]}" "${health[@]}" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    ((SECONDS - started < 120)) || { echo "not healthy in time" >&2; cat "$work/log" >&2; exit 1; }
    sleep 0.2
done
echo "healthy; looking at the page and what it loads"
"$python" - "$port" <<'PYTHON'
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
echo "installed: $(du -sm "$work/opt/walcast" | cut -f1) MB"
echo "The Dockerfile's steps work."
