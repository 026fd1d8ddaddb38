#!/bin/sh
# Seconds from nothing to the end of README's first command: a clone of this tree in an empty folder, an empty target, no crate
# downloaded yet. Budget: 10 minutes on two cores.
#
#   bench/first_command.sh [FOLDER]
#
# FOLDER (a new one in TMPDIR unless given, and removed at the end) must be empty and takes about 5 GB. As root the demo records by
# eBPF, else by preload. Uncommitted changes are not in a clone. The toolchain and the packages that README names must be there.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
command='cargo run --bin warptrace -- demo'
grep -qxF "$command" "$root/README.md" || {
    echo "README.md's first command is not \"$command\" any more: change this script" >&2
    exit 2
}
if [ $# -gt 0 ]; then
    folder=$1
    mkdir -p "$folder"
    if [ -n "$(ls -A "$folder")" ]; then
        echo "$folder is not empty" >&2
        exit 2
    fi
    folder=$(cd "$folder" && pwd)
else
    folder=$(mktemp -d "${TMPDIR:-/tmp}/first-command.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    trap 'exit 130' INT TERM
fi

# An empty home for cargo, with only the settings of the one in use (a mirror, a proxy).
mkdir "$folder/cargo" "$folder/data"
for settings in config.toml config; do
    from=${CARGO_HOME:-$HOME/.cargo}/$settings
    if [ -f "$from" ]; then cp "$from" "$folder/cargo/"; fi
done
export CARGO_HOME="$folder/cargo" WARPTRACE_DATA="$folder/data"
unset CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR RUSTC_WRAPPER

seconds() { date +%s.%N; }
past() { echo "$(seconds) $1" | awk '{ printf "%.1f", $1 - $2 }'; }

# --no-local: copied as over a network, no hard links.
began=$(seconds)
git clone --quiet --no-local "$root" "$folder/warptrace"
cd "$folder/warptrace"
cloned=$(past "$began")

# The command as one line of README's; its build alone first, so that the two are told apart.
start=$(seconds)
cargo build --bin warptrace
built=$(past "$start")
start=$(seconds)
$command
shown=$(past "$start")
total=$(past "$began")

echo
echo "commit $(git rev-parse --short HEAD), $(nproc) cores, $(rustc --version), Linux $(uname -r)"
echo "clone $cloned s, download and build $built s, demo $shown s: $total s in all (budget 600 s)"
echo "$total" | awk '{ exit ($1 > 600) }'
