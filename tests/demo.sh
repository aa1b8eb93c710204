#!/usr/bin/env bash
# `make demo`: one machine's disk, backed up twice, then given back through every door there is: FUSE, restore, NBD.
#
# Every step is timed and checked against the disk itself; the first that fails ends the demo, with its output and
# status 1.
# Works without root, but FUSE must be there. Everything lies in a temporary folder that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

coffer=$(realpath "${CARGO_TARGET_DIR:-target}")/release/coffer
work=$(mktemp -d --tmpdir coffer-demo.XXXXXX)
export XDG_CACHE_HOME=$work/cache
export COFFER_REPOSITORY=$work/repository COFFER_PASSWORD_FILE=$work/passphrase
mount_pid='' serve_pid='' title='starting'

cleanup() {
    local status=$?
    set +e
    [ -z "$serve_pid" ] || kill "$serve_pid" 2>/dev/null
    if mountpoint -q "$work/mnt"; then fusermount3 -u "$work/mnt" || fusermount3 -uz "$work/mnt"; fi
    [ -z "$mount_pid" ] || kill "$mount_pid" 2>/dev/null
    wait
    [ $status = 0 ] || { tail -n 20 "$work"/*.log 2>/dev/null; printf '\nDEMO FAILED at: %s\n' "$title"; } >&2
    rm -rf --one-file-system "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# step TITLE - ends the step before and begins the next
step() {
    local now
    now=$(($(date +%s%N) / 10000000))
    [ -z "${began:-}" ] || printf '   \e[2m%d.%02d s\e[0m\n' $(((now - began) / 100)) $(((now - began) % 100))
    began=$now title=$1
    printf '\n\e[1m== %s\e[0m\n' "$1"
}

run() {
    printf '$ coffer %s\n' "${*//$work\//}"
    "$coffer" "$@"
}

# await PID WHAT COMMAND.. - until the command succeeds, as long as the process lives, for a minute at most
await() {
    local pid=$1 what=$2 _
    shift 2
    for _ in {1..600}; do
        if "$@" >/dev/null 2>&1; then return 0; fi
        kill -0 "$pid" 2>/dev/null || { echo "$what ended early" >&2; return 1; }
        sleep 0.1
    done
    echo "$what did not come up within a minute" >&2
    return 1
}

# guest COMMANDS.. - changes the file system in the disk as a running machine would, without mounting it
guest() { printf '%s\n' "$@" | debugfs -w -f - "$disk?offset=1048576" >"$work/debugfs.log" 2>&1; }

# contents IMAGE PATH - a file of the guest's, read from an image of its disk
contents() { debugfs -R "cat $2" "$1?offset=1048576" 2>/dev/null; }

[ -x "$coffer" ] || { title="finding $coffer: run make demo"; exit 1; }
printf 'correct horse battery staple\n' >"$work/passphrase"

step 'A disk: 2 GiB, GPT, ext4, filled with programs and documents of this machine'
disk=$work/vm.raw
mkdir -p "$work/tree/srv"
(cd /usr && find bin share -xdev -type f -size -4096k -printf '%s %p\n' | sort -k2 |
    awk '(sum += $1) < 400000000 { sub("^[^ ]* ", ""); print }' | tar -cf - --no-recursion -T -) |
    tar -xf - -C "$work/tree"
seq 1 2000000 >"$work/tree/srv/ledger.txt"
largest=$work/tree/bin/$(find "$work/tree/bin" -type f -printf '%s %f\n' |
    awk '$1 > most { most = $1; name = $2 } END { print name }')
truncate -s 2G "$disk"
sgdisk -q -n1:2048:0 -t1:8300 "$disk" >/dev/null
mke2fs -q -t ext4 -d "$work/tree" -E offset=1048576 "$disk" 2046M
printf '%s in %s files\n' "$(du -sh "$work/tree" | cut -f1)" "$(find "$work/tree" -type f | wc -l)"

step 'A repository, encrypted under a passphrase'
run init

step 'The first backup'
run backup -w vm "disk=$disk"

step 'A day passes: a file grows, one goes, a copy of a program comes'
cp --sparse=always "$disk" "$work/yesterday.raw"
seq 1 2100000 >"$work/ledger.txt"
guest 'rm /srv/ledger.txt' "write $work/ledger.txt /srv/ledger.txt" "rm /bin/${largest##*/}" "write $largest /srv/copy"
cmp <(contents "$disk" /srv/ledger.txt) "$work/ledger.txt"
cmp <(contents "$disk" /srv/copy) "$largest"

step 'The second backup: what was new'
run backup -w vm "disk=$disk"

step 'What there is now'
run snapshots
run stats
run diff vm@-1 vm@latest

step 'FUSE: the disk as a file, and a file out of its file system'
mkdir "$work/mnt"
printf '$ coffer mount mnt &\n'
"$coffer" mount "$work/mnt" >"$work/mount.log" 2>&1 &
mount_pid=$!
await $mount_pid 'coffer mount' mountpoint -q "$work/mnt"
mapfile -t images < <(find "$work/mnt" -name '*.raw' | sort)
printf '%s\n' "${images[@]/#$work\//}"
[ ${#images[@]} = 2 ]
cmp <(contents "${images[0]}" /srv/ledger.txt) "$work/tree/srv/ledger.txt"
cmp <(contents "${images[1]}" /srv/ledger.txt) "$work/ledger.txt"
e2fsck -fn "${images[1]}?offset=1048576" >"$work/fsck.log" 2>&1
fusermount3 -u "$work/mnt"
wait $mount_pid
mount_pid=''
echo 'Both ledgers are the ones that were written; e2fsck finds nothing to mend.'

step 'Restore: both points in time, whole'
run restore vm@-1 --to "$work/restored-yesterday.raw"
cmp "$work/restored-yesterday.raw" "$work/yesterday.raw"
run restore vm@latest:disk --to "$work/restored.raw"
cmp "$work/restored.raw" "$disk"
echo 'Both are what was backed up, byte for byte.'

step 'NBD: a network disk, read by QEMU'
printf '$ coffer serve nbd --listen unix:nbd.sock vm=vm@latest &\n'
"$coffer" serve nbd --listen "unix:$work/nbd.sock" vm=vm@latest >"$work/serve.log" 2>&1 &
serve_pid=$!
uri="nbd+unix:///vm?socket=$work/nbd.sock"
await $serve_pid 'coffer serve nbd' nbdinfo --size "$uri"
qemu-img compare -f raw -F raw "$disk" "$uri"
kill -TERM $serve_pid
wait $serve_pid
serve_pid=''

step 'Every chunk read, decrypted and checked'
run verify --data all

step 'Done'
